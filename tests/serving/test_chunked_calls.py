import pytest

from expo_ray.serving.chunked_calls import split


@pytest.mark.parametrize("num_rows", [0, 1, 2, 63, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("num_replicas", [1, 2, 3])
def test_chunks_hold_all_rows_in_order_and_no_replica_idles(
    num_rows: int, num_replicas: int
) -> None:
    chunks = split(range(num_rows), max_rows=64, num_replicas=num_replicas)
    assert [row for chunk in chunks for row in chunk] == list(range(num_rows))
    assert all(0 < len(chunk) <= 64 for chunk in chunks)
    if num_rows >= 64 * num_replicas:
        assert len(chunks) % num_replicas == 0
        assert max(map(len, chunks)) - min(map(len, chunks)) < len(chunks)
