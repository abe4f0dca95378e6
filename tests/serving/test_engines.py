from importlib.util import find_spec
from pathlib import Path

import pytest

from expo_ray.errors import ConfigError, MissingExtraError
from expo_ray.rewards import RewardModelSpec
from expo_ray.serving import EngineOptions, ModelSource
from expo_ray.serving.engines import options, precision
from expo_ray.serving.engines.registry import ENGINES, pick_engine, resolve_reward_engine
from tests.pico import save_pair


def test_auto_says_what_it_picks_and_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = {"vllm": True, "gpu": True}

    def find(name: str) -> object:
        return find_spec("json") if there["vllm"] else None

    monkeypatch.setattr("expo_ray.extras.find_spec", find)
    monkeypatch.setattr("expo_ray.serving.engines.vllm.has_gpu", lambda: there["gpu"])

    def picked(name: str) -> tuple[str, str]:
        kind, reason = pick_engine(name)
        return kind.name, reason

    with caplog.at_level("INFO", logger="expo_ray"):
        assert picked("auto") == ("vllm", "vLLM is installed and there is a GPU")
    assert "vllm" in caplog.text
    there["gpu"] = False
    assert picked("auto") == ("transformers", "no GPU here")
    assert picked("vllm") == ("vllm", "as asked for")
    there["vllm"] = False
    assert picked("auto") == ("transformers", "vLLM is not installed")
    with pytest.raises(MissingExtraError, match="vllm"):
        pick_engine("vllm")
    with pytest.raises(MissingExtraError, match="vllm"):
        resolve_reward_engine("vllm", RewardModelSpec.parse("implicit:beta=1"))
    with pytest.raises(ConfigError, match="unknown engine"):
        pick_engine("tgi")


def test_engine_args_are_json_where_they_can_be_read_so() -> None:
    pairs = ["max-num-seqs=8", "kv_cache_dtype=fp8", "enforce_eager=True", 'a={"b": 1}', "c=d=e"]
    assert options.parse_engine_args(pairs) == {
        "max_num_seqs": 8,
        "kv_cache_dtype": "fp8",
        "enforce_eager": True,
        "a": {"b": 1},
        "c": "d=e",
    }


def test_a_cpu_computes_in_bfloat16_only_where_that_is_faster_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    narrow = ModelSource(model=str(save_pair(tmp_path / "narrow", dtype=torch.bfloat16)[1]))
    wide = ModelSource(model=str(save_pair(tmp_path / "wide", dtype=torch.float32)[1]))
    there = {"amx_bf16": True}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: there)
    monkeypatch.setattr("expo_ray.serving.engines.precision.has_gpu", lambda: False)

    def told(source: ModelSource, engine: str = "vllm", **engine_args: str) -> str:
        asked = EngineOptions(engine_args=engine_args)
        return precision.describe_precision(ENGINES[engine], source, asked)

    assert precision.cpu_dtype(narrow.open()) == "bfloat16"
    assert "bfloat16" in told(narrow) and "AMX" in told(narrow)
    assert "--engine-arg dtype=float32" in told(narrow)
    assert told(narrow, dtype="float32").startswith("CPU, float32 as asked for")
    for source, engine in ((wide, "vllm"), (narrow, "transformers")):
        assert told(source, engine).startswith("CPU, float32: ")
    there["amx_bf16"] = False
    assert precision.cpu_dtype(narrow.open()) == "float32"
    monkeypatch.setattr("expo_ray.serving.engines.precision.has_gpu", lambda: True)
    assert told(narrow) == "", "with a GPU the weights decide"
