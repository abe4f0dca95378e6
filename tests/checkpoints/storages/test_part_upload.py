"""Uploads in small parts, against a server that speaks S3."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from expo_ray.checkpoints.storages import s3_client
from expo_ray.checkpoints.storages.part_upload import (
    MAX_PARTS,
    MAX_STREAMS,
    MIN_PART_BYTES,
    PartUpload,
    open_upload,
)
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.retries import is_passing
from tests.checkpoints.s3_server import BUCKET, FailingProxy, client, s3_server, use

MANY = MAX_STREAMS + 1
PATH = RemotePath(f"s3://{BUCKET}/parts/model.safetensors")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingProxy]:
    proxy = FailingProxy(url, every=3)
    use(monkeypatch, proxy.url)
    s3_client._client_of.cache_clear()
    yield proxy
    proxy.close()
    s3_client._client_of.cache_clear()


def test_pieces_of_any_size_become_parts_and_a_failing_store_is_asked_again(
    url: str, proxy: FailingProxy
) -> None:
    data = os.urandom(2 * MIN_PART_BYTES + 12_345)
    upload = open_upload(PATH, len(data), num_open=MANY)
    sizes = [1, 100_000, MIN_PART_BYTES + 7]
    start = 0
    while start < len(data):
        size = sizes[start % 3]
        upload.write(memoryview(data)[start : start + size])
        start += size
    assert not PATH.exists()
    upload.close()
    upload.close()
    assert upload.closed
    assert proxy.num_failed > 0
    found = client(url).get_object(Bucket=BUCKET, Key="parts/model.safetensors")
    assert found["Body"].read() == data
    head = client(url).head_object(Bucket=BUCKET, Key="parts/model.safetensors", PartNumber=1)
    assert head["ContentLength"] == MIN_PART_BYTES


def test_an_upload_that_somebody_aborted_never_appears(url: str, proxy: FailingProxy) -> None:
    path = RemotePath(f"s3://{BUCKET}/aborted/model.safetensors")
    upload = open_upload(path, 10, num_open=MANY)
    upload.write(b"12345")
    s3 = client(url)
    [begun] = s3.list_multipart_uploads(Bucket=BUCKET, Prefix="aborted/")["Uploads"]
    s3.abort_multipart_upload(Bucket=BUCKET, Key=begun["Key"], UploadId=begun["UploadId"])
    with pytest.raises(OSError, match=f"cannot write {path}"):
        upload.close()
    assert not path.exists()


def test_a_place_that_is_refused_is_not_tried_again(proxy: FailingProxy) -> None:
    with pytest.raises(OSError, match="NoSuchBucket") as caught:
        open_upload(RemotePath("s3://no-such-bucket/out/a"), 10, num_open=MANY)
    assert not is_passing(caught.value)


def test_parts_grow_with_objects_that_would_have_too_many(url: str, proxy: FailingProxy) -> None:
    """Of two, one part too much for the smallest size: 48.9 GiB."""
    most = MAX_PARTS * MIN_PART_BYTES
    uploads = [PartUpload(PATH, num_bytes) for num_bytes in (most, most + 1)]
    assert [len(upload._buffer) for upload in uploads] == [MIN_PART_BYTES, MIN_PART_BYTES + 1]
    for upload in uploads:
        upload.abort()
    assert client(url).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_few_uploads_and_other_stores_are_left_to_pyarrow(proxy: FailingProxy) -> None:
    with open_upload(PATH, 5, num_open=MAX_STREAMS) as stream:
        assert not isinstance(stream, PartUpload)
        stream.write(b"small")
    assert PATH.read_bytes() == b"small"
