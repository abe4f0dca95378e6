"""vLLM tells thoughts from answers as the embedded engine does."""

from __future__ import annotations

from pathlib import Path

import pytest

from expo_ray.serving import EngineOptions, GeneratorReplicas, ModelSource, SamplingParams
from expo_ray.tables import RESPONSES_SCHEMA, Message, Prompt, read_table
from tests.serving.vllm_here import require_vllm
from tests.thinking_model import save_speaker

require_vllm()

pytestmark = pytest.mark.slow


def test_both_engines_give_the_same_split(ray_cluster: str, tmp_path: Path) -> None:
    model = save_speaker(tmp_path / "thinker", "w</think>Yes.")
    asked = Prompt(prompt_id="p", messages=(Message(role="user", content="Well?"),))
    columns = ["response", "thought", "thought_tokens", "completion_tokens", "finish_reason"]
    tables = []
    options = EngineOptions(engine_args={"max_num_seqs": 4, "dtype": "float32"})
    for engine, how in (("vllm", {"options": options}), ("transformers", {})):
        with GeneratorReplicas(1, engine, **how) as replicas:
            for limit in (20, 5):  # the whole, and a thought that is cut off
                path = tmp_path / f"{engine}-{limit}.parquet"
                sampling = SamplingParams(temperature=0, max_tokens=limit)
                source = ModelSource(model=str(model))
                replicas.write_responses(source, [asked], path, sampling=sampling)
                tables.append(read_table(path, RESPONSES_SCHEMA).select(columns).to_pylist())
    assert tables[:2] == tables[2:]
    assert tables[0] == [
        {
            "response": "Yes.",
            "thought": "w",
            "thought_tokens": 9,
            "completion_tokens": 14,
            "finish_reason": "stop",
        }
    ]
    assert (tables[1][0]["response"], tables[1][0]["thought"]) == ("", "w</th")
