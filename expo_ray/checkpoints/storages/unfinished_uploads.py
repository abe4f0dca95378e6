"""Multipart uploads that a killed process left in S3: under no name, but stored and billed.

pyarrow neither lists nor aborts them; boto3 does, where it is installed (the `s3` extra). On gs://
there is nothing to do: an upload that nobody continues expires there by itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.s3_client import LIFECYCLE_HINT, is_s3, s3_client, s3_errors

logger = logging.getLogger(__name__)


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
    client = s3_client() if is_s3(where) else None
    if client is None:
        return []
    try:
        pages = client.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, Prefix=prefix, Delimiter="/"
        )
        uploads = [upload for page in pages for upload in page.get("Uploads", ())]
    except s3_errors() as error:
        _warn("listed", where, error)
        return []
    return [Upload(bucket=bucket, key=u["Key"], upload_id=u["UploadId"]) for u in uploads]


def abort_uploads(uploads: list[Upload]) -> None:
    """Remove unfinished uploads and the parts they hold; one that has ended by now is fine."""
    for upload in uploads:
        address = f"s3://{upload.bucket}/{upload.key}"
        try:
            s3_client().abort_multipart_upload(
                Bucket=upload.bucket, Key=upload.key, UploadId=upload.upload_id
            )
        except s3_errors() as error:
            if _code(error) != "NoSuchUpload":
                _warn("aborted", address, error)
        else:
            logger.info("aborted an upload that was not ended: %s", address)


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
