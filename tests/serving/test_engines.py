from importlib.util import find_spec

import pytest

from expo_ray.errors import ConfigError, MissingExtraError
from expo_ray.serving.engines import options, pick_engine


def test_auto_says_what_it_picks_and_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = {"vllm": True, "gpu": True}

    def find(name: str) -> object:
        return find_spec("json") if there["vllm"] else None

    monkeypatch.setattr("expo_ray.serving.engines.find_spec", find)
    monkeypatch.setattr("expo_ray.serving.engines.has_gpu", lambda: there["gpu"])
    with caplog.at_level("INFO", logger="expo_ray"):
        assert pick_engine("auto") == ("vllm", "vLLM is installed and there is a GPU")
    assert "vllm" in caplog.text
    there["gpu"] = False
    assert pick_engine("auto") == ("transformers", "no GPU here")
    assert pick_engine("vllm")[0] == "vllm"
    there["vllm"] = False
    assert pick_engine("auto") == ("transformers", "vLLM is not installed")
    with pytest.raises(MissingExtraError, match="vLLM"):
        pick_engine("vllm")
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
