"""Rules: every tensor gets the alpha that the file says, and nothing stays unsaid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate, stream_weights, verify
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules, resolve
from expo_ray.extrapolation.planning.plan import build_plan
from tests.extrapolation.synthetic import (
    closed_form,
    file_digests,
    load,
    noise,
    same_bits,
    write,
)

RULES = [
    {"match": "*norm*", "alpha": -0.5},
    {"match": "*layers.*.mlp.*", "alpha": {"first": 0.1, "last": 0.7}},
    {"match": "vision.*", "alpha": {"first": 2, "last": 0}},
]
EXPECTED = {
    "model.norm.weight": -0.5,
    "model.layers.0.mlp.w": 0.1,
    "model.layers.1.mlp.w": 0.3,
    "model.layers.3.mlp.w": 0.7,
    "vision.layers.0.w": 2,
    "vision.layers.1.w": 0,
    "model.embed.weight": 0.25,
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    sides = []
    for side, seed in (("initial", 0), ("aligned", 50)):
        tensors = {name: noise((9, 7), torch.bfloat16, seed + i) for i, name in enumerate(EXPECTED)}
        tensors["model.layers.0.mlp.steps"] = torch.arange(5) + seed
        sides.append(write(tmp_path / side, tensors, num_shards=2))
    return sides[0], sides[1]


def rules_file(folder: Path, table: object) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


def test_every_tensor_has_the_alpha_of_its_first_rule(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    path = rules_file(tmp_path, {"rules": RULES, "default": 0.25})
    out = tmp_path / "out"
    options = {"alpha_rules": path, "address": "inline", "max_shard_size": "500B"}
    planned = extrapolate(*pair, out, dry_run=True, **options)
    assert [r["num_tensors"] for r in planned.plan["alpha_rules"]["rules"]] == [1, 3, 2]
    assert planned.plan["alpha_rules"]["num_default"] == 1
    result = extrapolate(*pair, out, **options)
    assert result.outputs[0].alpha is None
    assert result.outputs[0].path == str(out)
    before, after, written = (load(p) for p in (*pair, out))
    streamed = dict(stream_weights(*pair, alpha_rules=path))
    for name, tensor in after.items():
        alpha = EXPECTED.get(name, 0)
        assert same_bits(written[name], closed_form(before[name], tensor, alpha)), name
        assert same_bits(streamed[name], written[name])
    record = read_record(out)
    assert record["alpha"] is None
    assert record["alpha_rules"]["rules"][1]["alpha"] == {"first": 0.1, "last": 0.7}
    found = {name: row["alpha"] for name, row in record["tensors"].items()}
    assert found == pytest.approx({**EXPECTED, "model.layers.0.mlp.steps": None})
    assert "from -0.5 to 2" in (out / "README.md").read_text()
    assert verify(out, address="inline").recomputed
    again = extrapolate(*pair, out, **options)
    assert again.outputs[0].status == "skipped"


def test_one_rule_for_all_writes_what_alpha_writes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = rules_file(tmp_path, [{"match": "*", "alpha": 0.3}])
    extrapolate(*pair, tmp_path / "rules", alpha_rules=path, address="inline")
    extrapolate(*pair, tmp_path / "plain", alpha=0.3, address="inline")
    assert file_digests(tmp_path / "rules") == file_digests(tmp_path / "plain")


def test_other_rules_are_another_plan(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for value, refused in ((0.3, False), (0.4, True)):
        path = rules_file(tmp_path, [{"match": "*", "alpha": value}])
        if refused:
            with pytest.raises(ConfigError, match="another plan"):
                extrapolate(*pair, out, alpha_rules=path, address="inline")
        else:
            extrapolate(*pair, out, alpha_rules=path, address="inline")


@pytest.mark.parametrize(
    ("table", "alpha", "words"),
    [
        (RULES, (), "no rule matches a tensor"),
        ([*RULES, {"match": "*.bias", "alpha": 1}], 0.25, "never used"),
        ([{"match": "*", "alpha": 1}, *RULES], (), "never used"),
        ([*RULES, {"match": "*.steps", "alpha": 1}], 0.25, "never used"),
        ({"rules": RULES, "default": 1}, 0.25, "two defaults"),
        (RULES, (0.1, 0.2), "one checkpoint"),
        ([{"match": "*", "alpha": {"first": 0, "last": 1}}], (), "in no layer"),
        ([{"match": "*", "alpha": float("nan")}], (), "not finite"),
        ([{"match": "*", "alpha": {"first": 0, "last": float("inf")}}], (), "not finite"),
        ([{"match": "*", "alpha": "much"}], (), "malformed"),
        ([{"match": "*", "alpha": True}], (), "malformed"),
        ([{"match": "*", "alpha": 1, "weight": 2}], (), "malformed"),
        ({"rules": RULES, "defaults": 1}, (), "malformed"),
        ([], (), "no rule"),
        (None, (), "no rule"),
        ("text", (), "malformed"),
    ],
)
def test_wrong_rules_write_nothing(
    pair: tuple[Path, Path], tmp_path: Path, table: object, alpha: object, words: str
) -> None:
    path = rules_file(tmp_path, table)
    with pytest.raises(ConfigError, match=words):
        extrapolate(*pair, tmp_path / "out", alpha=alpha, alpha_rules=path, address="inline")
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_files_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("- {match: [")
    for path in (tmp_path / "none.yaml", broken):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            extrapolate(*pair, tmp_path / "out", alpha_rules=path, address="inline")
        assert path.name in str(caught.value.where)


def test_taken_tensors_are_explained(pair: tuple[Path, Path]) -> None:
    rules = AlphaRules.parse([{"match": "*", "alpha": 1}, {"match": "*norm*", "alpha": 0}])
    with pytest.raises(ConfigError) as caught:
        resolve(rules, build_plan(*pair).pair.tensors)
    assert "earlier rules take all 1" in str(caught.value.got)


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ({"match": "*", "alpha": {"first": 0.2}}, "rule 2, alpha, last"),
        ({"match": "*", "alpha": 1, "weight": 2}, "rule 2, weight"),
        ({"match": "*", "alpha": "much"}, "rule 2, alpha"),
    ],
)
def test_a_malformed_rule_is_named_as_people_count(rule: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match="malformed") as caught:
        AlphaRules.parse([{"match": "a", "alpha": 1}, rule])
    assert str(caught.value.where).endswith(f": {place}")
