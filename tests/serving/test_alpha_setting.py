"""Rules as what a source is: named, equal to the written checkpoint, given as a file or as data."""

import pickle
from pathlib import Path

import pytest
import yaml

from expo_ray.checkpoints import WeightsDigest, open_checkpoint, weights_digest
from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate, round_alpha
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.serving import ModelSource
from expo_ray.serving.alpha_setting import parse_setting, setting_fields
from expo_ray.serving.commands import model_source
from expo_ray.serving.engines.vllm_config import source_fields

RULES = [
    {"match": "*norm*", "alpha": 0},
    {"match": "model.layers.*", "alpha": {"first": 0.25, "last": 0.75}},
]


def test_the_stream_is_what_is_written_with_a_default_beside_the_rules(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    initial, aligned = map(str, pico_pair)
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(RULES))
    written = tmp_path / "written"
    extrapolate(initial, aligned, written, alpha=0.5, alpha_rules=file, address="inline")
    from_file = model_source(aligned, initial, 0.5, file)
    as_data = ModelSource(
        model=aligned, initial=initial, alpha_rules=AlphaRules.parse(RULES).with_default(0.5)
    )
    assert from_file == as_data
    assert (as_data.alpha, as_data.is_live, as_data.known_digest()) == (None, True, None)
    digest = WeightsDigest()
    assert [name for name, _ in as_data.iter_weights(digest)]
    assert digest.written() == weights_digest(open_checkpoint(written))
    # As plain values, to a process of vLLM, and back.
    assert ModelSource(**source_fields(as_data)) == pickle.loads(pickle.dumps(as_data)) == as_data
    assert ModelSource(model=aligned, initial=initial, alpha=0.3).at(as_data.setting) == as_data
    assert as_data.at(0.3).setting == 0.3


def test_rules_have_one_name_however_they_are_written() -> None:
    table = {"rules": [{"match": "*", "alpha": round_alpha(0.3)}]}
    same = [{"rules": [{"match": "*", "alpha": 0.3}], "default": None}, [table["rules"][0]]]
    digest = AlphaRules.parse(table).digest
    assert {AlphaRules.parse(other).digest for other in same} == {digest}
    assert len(digest) == 8
    changed = [
        [{"match": "*", "alpha": 0.4}],
        [{"match": "a*", "alpha": 0.3}],
        [{"match": "*", "alpha": {"first": 0.3, "last": 0.3}}],
        {**table, "default": 0.3},
        [table["rules"][0], table["rules"][0]],
    ]
    assert len({digest, *(AlphaRules.parse(other).digest for other in changed)}) == 6
    source = ModelSource(model="org/dpo", initial="i", alpha_rules=AlphaRules.parse(table))
    assert source.name == f"dpo@rules={digest}"


def test_wrong_settings_are_refused() -> None:
    rules = AlphaRules.parse({"rules": RULES, "default": 0.1})
    assert parse_setting(**setting_fields(rules)) == rules
    assert parse_setting(None) is None
    with pytest.raises(ConfigError, match="two defaults"):
        ModelSource(model="m", initial="i", alpha=0.5, alpha_rules=rules)
    with pytest.raises(ConfigError, match="both initial"):
        ModelSource(model="m", alpha_rules=rules)
    with pytest.raises(ConfigError, match="malformed"):
        parse_setting(None, [{"match": "*"}])
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_setting(None, "nowhere.yaml")


def test_rules_that_do_not_fit_the_pair_show_before_anything_starts(
    pico_pair: tuple[Path, Path],
) -> None:
    initial, aligned = map(str, pico_pair)
    assert model_source(aligned, initial, 0.5, RULES).is_live
    with pytest.raises(ConfigError, match="no rule matches"):
        model_source(aligned, initial, None, RULES)
    with pytest.raises(ConfigError, match="never used"):
        model_source(aligned, initial, 0.5, [*RULES, {"match": "x*", "alpha": 1}])
