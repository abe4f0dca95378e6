"""A run directory as the pipeline leaves it, made up from a seed in milliseconds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.reports.wording import format_alpha
from expo_ray.selection import choose_alpha
from expo_ray.tables.schemas import RESPONSES_SCHEMA, REWARDS_SCHEMA

ALPHAS = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
ITEMS = ("apples", "pears", "plums", "a hammer", "a saw", "pliers", "red", "green", "violet")
MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
)  # fmt: skip


class RunDirectory:
    """Writes the parts one by one, so that a test can leave some out.

    Args:
        path: Where to write.
        num_prompts: Half of them are held out.
        peak: The alpha at which the reward is highest.
        height: The mean gain there.
        truth_slope: How the hidden truth follows the reward beyond alpha 1; negative: it falls.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_prompts: int = 200,
        peak: float = 3.0,
        height: float = 0.35,
        truth_slope: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.path = path
        self.num_prompts = num_prompts
        self.peak = peak
        self.height = height
        self.truth_slope = truth_slope
        self.rng = np.random.default_rng(seed)
        self.prompt_ids = [str(i) for i in range(num_prompts)]
        self.splits = {p: "heldout" if int(p) % 2 else "tuning" for p in self.prompt_ids}
        self.rewards: dict[str, dict[float, np.ndarray]] = {}
        self.tokens: dict[float, np.ndarray] = {}
        path.mkdir(parents=True, exist_ok=True)

    def write_all(self, *, verdict: str = "extrapolate", best_alpha: float | None = None) -> Path:
        best = self.peak if best_alpha is None else best_alpha
        self.write_responses()
        self.write_rewards("0-reward-model", noise=1.0, bend=1.0)
        self.write_rewards("1-guard-reward-model", noise=1.4, bend=0.6)
        self.write_truth()
        self.write_selection(verdict=verdict, best_alpha=best)
        self.write_loadtests(best, rejected=verdict != "extrapolate")
        self.write_records(best)
        return self.path

    def write_responses(self, *, responses: dict[str, str] | None = None) -> None:
        """`responses` replaces the candidates' text of some prompts."""
        for alpha in ALPHAS:
            lengths = self.rng.normal(20 + 1.3 * alpha, 3, self.num_prompts).clip(4, 48).round()
            self.tokens[alpha] = lengths
            rows = []
            for i, prompt_id in enumerate(self.prompt_ids):
                words = self.rng.choice(ITEMS, int(lengths[i]) // 4)
                text = f"Sure, here they are: {', '.join(words)}. I hope this helps!"
                if responses and alpha > 0:
                    text = responses.get(prompt_id, text)
                rows.append(
                    {
                        **self._key(prompt_id, alpha),
                        "messages": [
                            {"role": "user", "content": f"List three fruits and {i} tools."}
                        ],
                        "response": text,
                        "model": "aligned" if alpha == 0 else f"alpha-{format_alpha(alpha)}",
                        "finish_reason": "length" if lengths[i] >= 40 else "stop",
                        "prompt_tokens": 9,
                        "completion_tokens": int(lengths[i]),
                        "error": None,
                    }
                )
            self._write("responses", alpha, rows, RESPONSES_SCHEMA)

    def write_rewards(self, name: str, *, noise: float, bend: float) -> None:
        base = self.rng.normal(2.0, 1.0, self.num_prompts)
        scores = {
            alpha: base
            + bend * self._gain(alpha)
            + self.rng.normal(0, 0.15 * noise * np.sqrt(min(alpha, 3.0)), self.num_prompts)
            for alpha in ALPHAS
        }
        self.rewards[name] = scores
        self._write_scores(name, scores)

    def write_truth(self) -> None:
        base = self.rng.normal(4.0, 1.2, self.num_prompts).clip(-5, 7)
        scores = {
            alpha: base
            + 0.3 * min(alpha, 1.0)
            + self.truth_slope * max(alpha - 1.0, 0.0)
            + self.rng.normal(0, 0.3 * np.sqrt(min(alpha, 3.0)), self.num_prompts)
            for alpha in ALPHAS
        }
        self.rewards["truth"] = scores
        self._write_scores("truth", scores)

    def write_selection(self, *, verdict: str, best_alpha: float, **changes: Any) -> dict[str, Any]:
        """Plain normal intervals: the report prints what stands here, whatever made it."""
        scores = next(iter(self.rewards.values()), None) or {
            alpha: self._gain(alpha) + self.rng.normal(2, 1, self.num_prompts) for alpha in ALPHAS
        }
        extrapolated = verdict == "extrapolate"
        confirmed = self._measure(scores[best_alpha], scores[0.0], "heldout")
        selection = {
            "schema_version": 1,
            "best_alpha": best_alpha if extrapolated else 0.0,
            "verdict": verdict,
            "reason": "The smallest alpha whose gain is within noise of the best one."
            if extrapolated
            else "The held-out interval includes zero.",
            "num_tuning": self.num_prompts // 2,
            "num_heldout": self.num_prompts // 2,
            "candidates": [self._candidate(scores, alpha) for alpha in ALPHAS],
            "guards": [
                {
                    "name": name,
                    "alpha": alpha,
                    "split": "tuning",
                    "value": value,
                    "threshold": limit,
                    "fired": value > limit,
                    "reason": f"{name} is {value:.2f}; threshold {limit}",
                }
                for alpha in ALPHAS[1:]
                for name, value, limit in (
                    ("length-ratio", 1 + 0.065 * alpha, 1.35),
                    ("truncation-rate", 0.002 * alpha**2, 0.1),
                )
            ],
            "heldout": {
                "alpha": best_alpha,
                "gain": confirmed[0],
                "ci_low": confirmed[1],
                "ci_high": confirmed[2],
                "num_pairs": self.num_prompts // 2,
                "p_value": 0.0004 if confirmed[1] > 0 else 0.31,
            },
            **changes,
        }
        self._json("selection.json", selection)
        return selection

    def choose(self) -> dict[str, Any]:
        """Let the selection room choose from the tables that were written."""
        names = list(self.rewards)
        rewards = {name: self._all(f"rewards/{name}") for name in names}
        selection = choose_alpha(
            self._all("responses"),
            rewards[names[0]],
            guard_rewards={name: rewards[name] for name in names[1:]},
        )
        self._json("selection.json", selection)
        return selection

    def _all(self, folder: str) -> pa.Table:
        files = sorted((self.path / folder).glob("*.parquet"))
        return pa.concat_tables(pq.read_table(file) for file in files)

    def write_loadtests(self, alpha: float, *, rejected: bool) -> None:
        candidate = f"alpha-{format_alpha(alpha)}"
        for label, slower in (("aligned", 1.0), (candidate, 1.06)):
            self._json(
                f"loadtest/{label}/summary.json",
                {
                    "schema_version": 1,
                    "target": label,
                    "weights_digest": _sha(label),
                    "points": [self._point(c, slower) for c in (1, 4, 16)],
                },
            )
        self._json(
            "loadtest/compared.json",
            {"baseline": "aligned", "candidate": candidate, "candidate_rejected": rejected},
        )

    def write_records(self, alpha: float) -> None:
        files = [
            {"uri": f"/models/{{role}}/model-0000{i}-of-00003.safetensors", "bytes": 556_102,
             "header_sha256": _sha(str(i)), "mtime": 1_700_000_000 + i}
            for i in (1, 2, 3)
        ]  # fmt: skip
        self._json(
            "resolved.json",
            {
                "schema_version": 1,
                "recipe_digest": _sha("recipe"),
                **{
                    role: {
                        "uri": f"/models/{role}",
                        "files": [{**f, "uri": f["uri"].format(role=role)} for f in files],
                    }
                    for role in ("initial", "aligned")
                },
                "recipe": {"name": "quickstart"},
                "alphas": list(ALPHAS),
                "versions": {"expo-ray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"},
                "seed": 42,
                "sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "stop": []},
                "reward_models": {"0-reward-model": "/models/reward-model"},
                "engine": "transformers",
                "hardware": {"machine": "x86_64", "num_cpus": 2},
            },
        )
        self._json("lab.json", {"settings": {"seed": 0, "dpo_beta": 0.1}, "truth": {"max": 7}})
        self._json("timings.json", {"laboratory": 81.2, "extrapolation": 2.4, "generation": 40.9})
        recipe = "name: quickstart\noutput: runs/quickstart\nlab: {}\n"
        (self.path / "recipe.yaml").write_text(recipe)
        self._json(
            f"checkpoints/alpha-{format_alpha(alpha)}/expo_ray.json",
            {
                "schema_version": 1,
                "alpha": alpha,
                "weights_digest": _sha("weights"),
                "files": [{"name": "model.safetensors", "bytes": 1_620_480, "digest": _sha("f")}],
                "tensors": self._tensors(),
            },
        )

    def _tensors(self) -> dict[str, Any]:
        names = [f"model.layers.{n}.{m}.weight" for n in range(12) for m in MODULES]
        names += ["model.embed_tokens.weight", "model.norm.weight"]
        return {
            name: {
                "dtype": "BF16",
                "statistics": {
                    "initial_norm": 20.0,
                    "delta_norm": 20.0 * float(self.rng.uniform(0.001, 0.012)),
                },
            }
            for name in names
        }

    def _gain(self, alpha: float) -> float:
        x = alpha / self.peak
        return self.height * (2 * x - x * x if x < 2.5 else -1.25)

    def _candidate(self, scores: dict[float, np.ndarray], alpha: float) -> dict[str, Any]:
        tuning = self._mask("tuning")
        mean, low, high = self._measure(scores[alpha], np.zeros(self.num_prompts), "tuning")
        gain, gain_low, gain_high = self._measure(scores[alpha], scores[0.0], "tuning")
        tokens = self.tokens.get(alpha, np.full(self.num_prompts, 20.0))
        aligned_tokens = self.tokens.get(0.0, np.full(self.num_prompts, 20.0))
        return {
            "alpha": alpha,
            "num_pairs": int(tuning.sum()),
            "num_errors": 0,
            "mean_reward": mean,
            "ci_low": low,
            "ci_high": high,
            "gain": gain,
            "gain_ci_low": gain_low,
            "gain_ci_high": gain_high,
            "mean_tokens": float(tokens[tuning].mean()),
            "length_ratio": float(tokens[tuning].mean() / aligned_tokens[tuning].mean()),
            "truncation_rate": float((tokens[tuning] >= 40).mean()),
            "collapsed": alpha >= 8,
        }

    def _measure(
        self, scores: np.ndarray, reference: np.ndarray, split: str
    ) -> tuple[float, float, float]:
        differences = (scores - reference)[self._mask(split)]
        mean = float(differences.mean())
        half = float(1.96 * differences.std() / np.sqrt(differences.size))
        return mean, mean - half, mean + half

    def _mask(self, split: str) -> np.ndarray:
        return np.array([self.splits[p] == split for p in self.prompt_ids])

    def _point(self, concurrency: int, slower: float) -> dict[str, Any]:
        latency = slower * (180 + 22 * concurrency)
        point: dict[str, Any] = {
            "mode": "closed", "concurrency": concurrency, "offered_rate": None,
            "achieved_rate": None, "client_saturated": False, "errors": {}, "completed": 100,
            "failed": 0, "duration": 12.0, "total_input_tokens": 900, "total_output_tokens": 2100,
            "request_throughput": 1000 * concurrency / latency,
            "request_goodput": None,
            "output_throughput": 21_000 * concurrency / latency,
            "total_token_throughput": 30_000 * concurrency / latency,
        }  # fmt: skip
        for name, share in (("ttft", 0.2), ("tpot", 0.04), ("itl", 0.04), ("e2el", 1.0)):
            for statistic, factor in (
                ("mean", 1.05), ("std", 0.2), ("median", 1.0), ("p90", 1.3), ("p95", 1.5),
                ("p99", 1.8),
            ):  # fmt: skip
                point[f"{statistic}_{name}_ms"] = share * factor * latency
        return point

    def _key(self, prompt_id: str, alpha: float) -> dict[str, Any]:
        return {
            "prompt_id": prompt_id,
            "sample": 0,
            "split": self.splits[prompt_id],
            "alpha": alpha,
            "weights_digest": _sha(str(alpha)),
            "seed": int(prompt_id),
        }

    def _write_scores(self, name: str, scores: dict[float, np.ndarray]) -> None:
        for alpha, values in scores.items():
            rows = [
                {
                    **self._key(prompt_id, alpha),
                    "reward": float(values[i]),
                    "reward_model": name,
                    "reward_model_revision": None,
                    "tokens": 30,
                    "truncated": False,
                    "error": None,
                }
                for i, prompt_id in enumerate(self.prompt_ids)
            ]
            self._write(f"rewards/{name}", alpha, rows, REWARDS_SCHEMA)

    def _write(self, folder: str, alpha: float, rows: list[Any], schema: pa.Schema) -> None:
        target = self.path / folder / f"alpha-{format_alpha(alpha)}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), target)

    def _json(self, name: str, content: object) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
