"""Configurations by which TRL trains the pair of the paper's controlled runs anew on a cluster."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from expo_ray.extrapolation import diagnose

FOLDER = Path(__file__).resolve().parents[2] / "pipelines/training"
METHODS = ("sft", "dpo")
NUM_GPUS = 8


def parsed(method: str) -> Any:
    """Return what TRL's own command makes of a configuration; it refuses what it does not know."""
    pytest.importorskip("trl")
    parser = importlib.import_module(f"trl.scripts.{method}").make_parser()
    path = FOLDER / f"zephyr-7b-{method}.yaml"
    # A processor has no bfloat16 that the trainers would take.
    flags = ["--config", str(path), "--bf16", "False", "--use_cpu", "True"]
    return parser.parse_args_and_config(args=flags)


def test_the_settings_are_those_of_the_handbook() -> None:
    sft, dpo = (parsed(method) for method in METHODS)
    for _, training, model, *_ in (sft, dpo):
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        assert batch * NUM_GPUS == 128
        assert (training.num_train_epochs, training.warmup_steps) == (1, 0.1)
        assert training.lr_scheduler_type == "cosine"
        assert model.dtype == "float32"
    assert (sft[1].learning_rate, sft[1].max_length) == (2e-5, 2048)
    assert (dpo[1].learning_rate, dpo[1].max_length, dpo[1].beta) == (5e-7, 1024, 0.01)
    num_steps = 478  # of 61,135 pairs
    for share in (0.05, 0.1, 0.2, 0.4):
        off = share * num_steps % dpo[1].save_steps
        assert min(off, dpo[1].save_steps - off) <= 1, "a checkpoint at each share of the paper"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_train_a_small_model_from_its_start_to_a_pair(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """As the heads of the files say, but in one process, on what is small and lies here."""
    shutil.copy(FOLDER / "zephyr.jinja", tmp_path)
    turns = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant")]
    better = [turns[0], {"role": "assistant", "content": "better"}]
    # With all columns of the published data.
    rows = {
        "sft": {"prompt": "user says", "prompt_id": "0", "messages": turns},
        "dpo": {"prompt": "user says", "chosen": better, "rejected": turns, "score_chosen": 8.0},
    }
    start = pico_pair[0]
    for method in METHODS:
        settings = yaml.safe_load((FOLDER / f"zephyr-7b-{method}.yaml").read_text())
        data = tmp_path / f"{method}-data"
        data.mkdir()
        (data / "train.jsonl").write_text(f"{json.dumps(rows[method])}\n" * 16)
        settings["datasets"][0] |= {"path": str(data), "split": "train"}
        settings |= {"output_dir": str(tmp_path / method), "model_name_or_path": str(start)}
        settings |= {"max_length": 64, "dataset_num_proc": 1, "per_device_train_batch_size": 1}
        settings |= {"bf16": False, "use_cpu": True, "max_steps": 2, "learning_rate": 1e-3}
        config = tmp_path / f"{method}.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [Path(sys.executable).with_name("trl"), method, "--config", config]
        subprocess.run([*command, "--num_processes", "1"], cwd=tmp_path, check=True, timeout=280)
        start = tmp_path / method
    template = (tmp_path / "sft" / "chat_template.jinja").read_text()
    assert template == (FOLDER / "zephyr.jinja").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dpo")
    end = tokenizer.eos_token
    assert tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True) == (
        f"<|user|>\nuser says{end}\n<|assistant|>\n"
    )
    assert diagnose(str(tmp_path / "sft"), str(tmp_path / "dpo"), address="inline").fit
