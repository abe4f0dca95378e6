"""The recipes of the paper's models: right, and planned on files that have the real layout."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from typer.testing import CliRunner

from expo_ray.checkpoints.formats.header import build_header, tensor_bytes
from expo_ray.cli.main import app
from expo_ray.workflow.plan import plan_run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(ROOT.glob("pipelines/recipes/paper/*.yaml"))
FILE_BYTES = 10 * 10**9


class Layout(NamedTuple):
    """The numbers of a published config.json that decide names and shapes."""

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    num_parameters: float
    """As its makers publish it, in billions."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.hidden, self.hidden // self.heads * self.kv_heads
        if self.model_type == "internlm2":
            parts = {
                "attention.wqkv": (queries + 2 * keys, self.hidden),
                "attention.wo": (self.hidden, queries),
                "feed_forward.w1": (self.inner, self.hidden),
                "feed_forward.w3": (self.inner, self.hidden),
                "feed_forward.w2": (self.hidden, self.inner),
                "attention_norm": (self.hidden,),
                "ffn_norm": (self.hidden,),
            }
            ends = ("model.tok_embeddings", "output")
        else:
            parts = {
                "self_attn.q_proj": (queries, self.hidden),
                "self_attn.k_proj": (keys, self.hidden),
                "self_attn.v_proj": (keys, self.hidden),
                "self_attn.o_proj": (self.hidden, queries),
                "mlp.gate_proj": (self.inner, self.hidden),
                "mlp.up_proj": (self.inner, self.hidden),
                "mlp.down_proj": (self.hidden, self.inner),
                "input_layernorm": (self.hidden,),
                "post_attention_layernorm": (self.hidden,),
            }
            ends = ("model.embed_tokens", "lm_head")
        found = {f"{end}.weight": (self.vocabulary, self.hidden) for end in ends}
        for i in range(self.layers):
            found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in parts.items()}
        return found | {"model.norm.weight": (self.hidden,)}

    def config(self) -> dict[str, Any]:
        known = {"internlm2": "InternLM2", "llama": "Llama", "mistral": "Mistral"}
        return {
            "architectures": [f"{known[self.model_type]}ForCausalLM"],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


MISTRAL_7B = Layout("mistral", 4096, 14336, 32, 32, 8, 32_000, 7.24)
LAYOUTS = {
    "internlm2-1.8b": Layout("internlm2", 2048, 8192, 24, 16, 8, 92_544, 1.89),
    "internlm2-7b": Layout("internlm2", 4096, 14336, 32, 32, 8, 92_544, 7.74),
    "internlm2-20b": Layout("internlm2", 6144, 16384, 48, 48, 8, 92_544, 19.86),
    "llama-3-8b-iterative-dpo": Layout("llama", 4096, 14336, 32, 32, 8, 128_256, 8.03),
    "tulu-2-7b": Layout("llama", 4096, 11008, 32, 32, 32, 32_000, 6.74),
    "tulu-2-13b": Layout("llama", 5120, 13824, 40, 40, 40, 32_000, 13.02),
    "tulu-2-70b": Layout("llama", 8192, 28672, 80, 64, 8, 32_000, 68.98),
}


def write_stand_in(folder: Path, layout: Layout) -> Path:
    """Write a checkpoint of headers alone: the weights are holes that take no room on a disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(layout.config()))
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in layout.tensors().items():
        num_bytes = tensor_bytes("BF16", shape)
        if size + num_bytes > FILE_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size += num_bytes
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        header = build_header([(name, "BF16", shape) for name, shape in group.items()])
        (folder / file).write_bytes(header)
        data_bytes = sum(tensor_bytes("BF16", shape) for shape in group.values())
        os.truncate(folder / file, len(header) + data_bytes)
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def overrides(folder: Path, layout: Layout) -> list[str]:
    """Return what puts a stand-in in the place of the pair, and little in that of the rest."""
    initial, aligned = (write_stand_in(folder / side, layout) for side in ("sft", "dpo"))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(20)))
    return [
        f"output={folder / 'run'}",
        f"initial={initial}",
        f"aligned={aligned}",
        f"prompts.path={prompts}",
        "prompts.sample=10",
        "reward_models=[implicit:beta=0.1]",
        # What stands for the weights is equal, and this looks at headers alone.
        "generators.engine=transformers",
        "generators.tensor_parallel_size=1",
        "generators.engine_args={}",
    ]


def test_every_model_of_the_paper_has_a_recipe() -> None:
    pairs = [yaml.safe_load(path.read_text()) for path in RECIPES]
    assert len({pair["aligned"] for pair in pairs}) == len({pair["initial"] for pair in pairs}) + 1
    # Twelve models, the fully trained one, and one of the controlled runs, of one initial model.
    assert len(pairs) == 14


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_paper_is_planned(tmp_path: Path, path: Path) -> None:
    layout = LAYOUTS.get(path.stem, MISTRAL_7B)
    plan = plan_run(path, overrides(tmp_path, layout))
    (stage,) = (stage for stage in plan["stages"] if stage["stage"] == "extrapolation")
    assert stage["num_parameters"] / 1e9 == pytest.approx(layout.num_parameters, rel=0.005)
    assert stage["bytes_in"] == pytest.approx(4 * stage["num_parameters"], rel=0.001)
    assert plan["num_prompts"] == 10


def test_the_largest_shows_its_plan_on_the_command_line(tmp_path: Path) -> None:
    changes = overrides(tmp_path, LAYOUTS["tulu-2-70b"])
    flags = [part for change in changes for part in ("--set", change)]
    recipe = str(ROOT / "pipelines/recipes/paper/tulu-2-70b.yaml")
    found = CliRunner().invoke(app, ["run", recipe, "--dry-run", *flags])
    assert found.exit_code == 0, found.output
    assert re.search(r"extrapolation +29 shards +275\.9 GB +138\.0 GB", found.output)
