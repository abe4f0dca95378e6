import pytest

from expo_ray.errors import ConfigError
from expo_ray.tables import assign_splits, row_seed


def test_row_seeds_are_distinct_63_bit_and_stable() -> None:
    seeds = {row_seed(r, p, s) for r in (1, 42) for p in ("1", "11", "a'") for s in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Golden: another value would break every stored responses table.
    assert row_seed(42, "alpaca_eval-0", 0) == GOLDEN


GOLDEN = 243945767628009475


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 2 / 3])
def test_splits_are_exact_and_do_not_depend_on_order(fraction: float) -> None:
    ids = [str(i) for i in range(30)]
    splits = assign_splits(ids, heldout_fraction=fraction, seed=1)
    assert list(splits) == ids
    assert sum(s == "heldout" for s in splits.values()) == round(30 * fraction)
    assert assign_splits(ids[::-1], heldout_fraction=fraction, seed=1) == splits
    if fraction:
        assert assign_splits(ids, heldout_fraction=fraction, seed=2) != splits


def test_a_split_never_leaves_a_side_empty() -> None:
    assert sorted(assign_splits(["a", "b"], heldout_fraction=0.01, seed=0).values()) == [
        "heldout",
        "tuning",
    ]
    for ids, fraction in ((["a"], 0.5), (["a", "b"], 1.0), (["a", "b"], -0.1)):
        with pytest.raises(ConfigError):
            assign_splits(ids, heldout_fraction=fraction, seed=0)
