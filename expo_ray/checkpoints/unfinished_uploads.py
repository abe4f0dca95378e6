"""Multipart uploads that a killed process left in S3: under no name, but stored and billed.

pyarrow neither lists nor aborts them; boto3 does, where it is installed (the `s3` extra). On gs://
there is nothing to do: an upload that nobody continues expires there by itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from expo_ray.checkpoints.remote_path import (
    CONNECT_TIMEOUT_SECONDS,
    REQUEST_TIMEOUT_SECONDS,
    RemotePath,
    endpoint_url,
    region,
)
from expo_ray.checkpoints.retries import ATTEMPTS

logger = logging.getLogger(__name__)

LIFECYCLE_HINT = (
    "a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) removes those of killed runs"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One upload that was begun and not ended."""

    bucket: str
    key: str
    upload_id: str


def find_unfinished_uploads(*folders: RemotePath) -> list[Upload]:
    """List the uploads to keys directly in some folders; what lies deeper belongs to others.

    A store that does not answer, or boto3 that is missing, is told in the log and gives none:
    what is left over costs money and harms no result.

    Args:
        folders: Prefixes in S3; others are passed over.
    """
    found = []
    for folder in folders:
        bucket, _, prefix = f"{folder.key}/".partition("/")
        found += [
            upload
            for upload in _uploads(folder, bucket, prefix)
            # Not every server heeds the prefix and the delimiter.
            if upload.key.startswith(prefix) and "/" not in upload.key[len(prefix) :]
        ]
    return found


def find_uploads_to(path: RemotePath) -> list[Upload]:
    """List the uploads to one key that were begun and not ended; see `find_unfinished_uploads`."""
    bucket, _, key = path.key.partition("/")
    return [upload for upload in _uploads(path, bucket, key) if upload.key == key]


def _uploads(where: RemotePath, bucket: str, prefix: str) -> list[Upload]:
    client = _client() if str(where).startswith("s3://") else None
    if client is None:
        return []
    try:
        pages = client.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, Prefix=prefix, Delimiter="/"
        )
        uploads = [upload for page in pages for upload in page.get("Uploads", ())]
    except _errors() as error:
        _warn("listed", where, error)
        return []
    return [Upload(bucket=bucket, key=u["Key"], upload_id=u["UploadId"]) for u in uploads]


def abort_uploads(uploads: list[Upload]) -> None:
    """Remove unfinished uploads and the parts they hold; one that has ended by now is fine."""
    for upload in uploads:
        address = f"s3://{upload.bucket}/{upload.key}"
        try:
            _client().abort_multipart_upload(
                Bucket=upload.bucket, Key=upload.key, UploadId=upload.upload_id
            )
        except _errors() as error:
            if _code(error) != "NoSuchUpload":
                _warn("aborted", address, error)
        else:
            logger.info("aborted an upload that was not ended: %s", address)


def _client() -> Any:
    return _client_of(endpoint_url("s3"), region())


@lru_cache(maxsize=2)
def _client_of(endpoint: str | None, region_name: str | None) -> Any:
    """Return a client that talks to the same store as pyarrow does, None without boto3."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        logger.info("unfinished uploads are not looked for without boto3: %s", LIFECYCLE_HINT)
        return None
    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region_name,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=REQUEST_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # As pyarrow: compatible servers are asked by path, and only the environment counts.
            s3={"addressing_style": "path"} if endpoint else None,
            ignore_configured_endpoint_urls=True,
        ),
    )


def _errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code") or type(error).__name__)


def _warn(action: str, where: object, error: Exception) -> None:
    logger.warning(
        "unfinished uploads cannot be %s at %s (%s): %s",
        action,
        where,
        _code(error),
        LIFECYCLE_HINT,
    )
