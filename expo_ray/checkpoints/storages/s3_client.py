"""What S3 offers and pyarrow does not, through boto3, where it is installed (the `s3` extra)."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from expo_ray.checkpoints.storages.amazon_s3 import S3
from expo_ray.checkpoints.storages.object_store import (
    CONNECT_TIMEOUT_SECONDS,
    REQUEST_TIMEOUT_SECONDS,
)
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.retries import ATTEMPTS
from expo_ray.extras import install_command

logger = logging.getLogger(__name__)

LIFECYCLE_HINT = (
    "a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) removes those of killed runs"
)
# The most that S3 copies in one request.
MAX_COPY_BYTES = 5 * 1024**3
COPY_PART_BYTES = 1024**3


def s3_client() -> Any:
    """Return a client that talks to the same store as pyarrow does, None without boto3."""
    return _client_of(S3.endpoint_url(), S3.region())


def move(source: RemotePath, target: RemotePath, num_bytes: int) -> None:
    """Move an object inside its store, in parts where S3 copies it in no other way.

    Args:
        source: The object.
        target: Where it goes.
        num_bytes: Its size.

    Raises:
        OSError: The store failed.
    """
    client = s3_client() if num_bytes > MAX_COPY_BYTES and is_s3(source) else None
    if client is None:
        source.replace(target)
        return
    from boto3.s3.transfer import TransferConfig

    bucket, _, key = source.key.partition("/")
    target_bucket, _, target_key = target.key.partition("/")
    config = TransferConfig(multipart_threshold=1, multipart_chunksize=COPY_PART_BYTES)
    try:
        # It aborts its parts where it fails.
        client.copy({"Bucket": bucket, "Key": key}, target_bucket, target_key, Config=config)
    except s3_errors() as error:
        raise OSError(f"cannot copy {source} in parts: {error}") from error
    source.unlink()


def may_move(folder: RemotePath, num_bytes: int) -> bool:
    """Tell whether an object of this size can be moved below a folder."""
    return num_bytes <= MAX_COPY_BYTES or not is_s3(folder) or s3_client() is not None


def is_s3(path: RemotePath) -> bool:
    """Tell S3 from Google's store, which moves objects of any size."""
    return path.store is S3


def s3_errors() -> tuple[type[Exception], ...]:
    """Return what boto3 raises."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError, Boto3Error


@lru_cache(maxsize=2)
def _client_of(endpoint: str | None, region_name: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        logger.info(
            "unfinished uploads are not looked for without boto3 (%s): %s",
            install_command("s3"),
            LIFECYCLE_HINT,
        )
        return None
    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region_name,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=REQUEST_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # As pyarrow; some servers refuse checksums that they do not know.
            request_checksum_calculation="when_required",
            # As pyarrow: compatible servers are asked by path, and only the environment counts.
            s3={"addressing_style": "path"} if endpoint else None,
            ignore_configured_endpoint_urls=True,
        ),
    )
