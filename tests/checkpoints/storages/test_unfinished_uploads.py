"""Uploads that nobody ended: listed and aborted by prefix; trouble is told and stops nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from expo_ray.checkpoints.storages import s3_client
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.unfinished_uploads import abort_uploads, find_unfinished_uploads
from tests.checkpoints.s3_server import BUCKET, client, s3_server, use


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as url:
        use(monkeypatch, url)
        s3_client._client_of.cache_clear()
        yield url
        # The uploads of the server outlive it in this process.
        for upload in client(url).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client(url).abort_multipart_upload(
                Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
            )


def test_an_upload_that_ended_in_between_is_fine(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    client(s3).create_multipart_upload(Bucket=BUCKET, Key="ended/a")
    client(s3).create_multipart_upload(Bucket=BUCKET, Key="ended/b/c")
    found = find_unfinished_uploads(RemotePath(f"s3://{BUCKET}/ended"))
    assert [upload.key for upload in found] == ["ended/a"]
    abort_uploads(found)
    caplog.clear()
    abort_uploads(found)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert find_unfinished_uploads(RemotePath(f"s3://{BUCKET}/ended")) == []


def test_a_store_that_refuses_is_told_without_secrets(
    s3: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_unfinished_uploads(RemotePath("s3://no-such-bucket/out")) == []
    assert "NoSuchBucket" in caplog.text
    assert "AbortIncompleteMultipartUpload" in caplog.text
    assert "of-tests" not in caplog.text


def test_without_boto3_the_lifecycle_rule_is_named_once(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    with caplog.at_level(logging.INFO, logger="expo_ray"):
        for _ in range(2):
            assert find_unfinished_uploads(RemotePath(f"s3://{BUCKET}/out")) == []
    assert caplog.text.count("AbortIncompleteMultipartUpload") == 1
    s3_client._client_of.cache_clear()
