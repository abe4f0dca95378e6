"""Proves or refutes what the selection promises, in the laboratory, where the truth is known.

    python -m benchmarks.selection_proof --output results.jsonl
    python -m benchmarks.selection_proof --summarize results.jsonl [--write]
    python -m benchmarks.selection_proof --replay tables --guard-doubt stop

Per seed a laboratory is trained on a share of the preference data. The selection sees the rewards
of two reward models on some prompts; the truth is then measured on other prompts, and an oracle
that sees the truth on a third part says what could have been gained. Negative controls extrapolate
along directions that mean nothing. Promised is:

    1. the alpha of the highest mean reward alone is often worse than alpha 0
    2. the guarded selection recovers at least 70% of the truth that the oracle gains
    3. it is never significantly worse than alpha 0, corrected for the number of runs
    4. it keeps the aligned model on at least 95% of the negative controls

Away from an unrelated model means larger weights, so surer answers, which can be really better: on
a design seed alpha 0.3 was, in truth. Such a pair is for `diagnose` to tell: `select` and `run` ask
it before they generate anything, and keep the aligned model of an unfit pair. The controls are
counted so, and by the choice alone.

Every control has a seed of its own. Those beyond the runs' seeds are judged by the reward models of
a run, whose training is most of what a laboratory costs; they never saw the control's models.
Racing is replayed on every case: beside its full grid stands what it would have chosen, and for how
many of the answers.

Every finished case is one line of the output; a rerun does those that are missing. What the models
answered is kept with `--tables`: from there other rules choose anew in seconds. Everything
below was frozen by looking at seeds 0 and 1 alone. Beside it is shown what an order of candidates
by the scoring reward model alone would have chosen; no promise is judged by that.

Needs: two CPU cores. Takes: hours; every finished case is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from benchmarks.proof_answers import line_of, read_answers
from benchmarks.proof_case import CONTROLS, Case, Frozen, facts_of, measure_case
from benchmarks.proof_summary import record, render
from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.lab import LabResult, LabSettings, prepare_lab
from expo_ray.reports.proof import RECORD
from expo_ray.selection import SelectionSettings
from expo_ray.selection.guard_settings import Doubt
from expo_ray.serving.sampling import SamplingParams

FROZEN = Frozen(
    lab=LabSettings(
        # All that there may be: selection, oracle and truth need many requests of their own.
        num_eval_prompts=720,
        # The scoring reward model knows the answers of writers alone, as published ones do. With
        # broken text among its pairs, the laboratory's default, what it liked best was below
        # alpha 0 in none of four design runs; without, in one of them, by 8.8 points of truth.
        damaged_share=0.0,
        # The second judge is the stronger one: more pairs, more width, broken text among them,
        # and half of them answers of the extrapolated pair itself.
        num_guard_pairs=9000,
        guard_hidden_size=160,
        guard_on_policy_share=0.5,
    ),
    # What users get. On the design seeds both orders of candidates chose the same; a scoring model
    # that never saw broken text should not have the last word alone.
    selection=SelectionSettings(rank_by="all-judges"),
    sampling=SamplingParams(max_tokens=64),
    # The grid of the demo, and beyond it for pairs that saw little data: on the design seed with
    # 5% of the data the truth was highest at 18.
    alphas=(0.0, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 18.0),
    # One prompt per request: as many as a user who reads the README would bring. With six times
    # as many prompts the choices on the design seeds were no better.
    num_selection_requests=200,
    num_selection_templates=1,
    # 2080 prompts for the oracle, and as many for the truth.
    num_truth_requests=260,
)
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 1.0)
NUM_PARALLEL = 2
RESULT = Path(__file__).resolve().parent / "results" / "selection_proof.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="100-119", help="FIRST-LAST (default: %(default)s)")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=FRACTIONS,
        help="shares of the preference data, dealt to the seeds in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--controls",
        type=int,
        default=30,
        help="negative controls of each of the two kinds, a seed each (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="JSON lines, one per case; kept and added to")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/lab-proof"), help="folder of the laboratories"
    )
    parser.add_argument("--tables", type=Path, help="keep what the models answered in this folder")
    parser.add_argument("--replay", type=Path, help="choose anew from kept answers, and print")
    parser.add_argument(
        "--guard-doubt",
        choices=get_args(Doubt),
        default=FROZEN.selection.guard_doubt,
        help="with --replay: what guards do in doubt (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, help="do so many of the missing cases")
    parser.add_argument("--parallel", type=int, default=NUM_PARALLEL, help="cases at a time")
    parser.add_argument("--summarize", type=Path, help="print the tables of recorded lines")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write them to benchmarks/results/{RESULT.name}, and for reports of laboratories too",
    )
    arguments = parser.parse_args()
    first, last = map(int, arguments.seeds.split("-"))
    cases = list_cases(range(first, last + 1), arguments.fractions, arguments.controls)
    if arguments.summarize:
        if not arguments.summarize.exists():
            parser.error(f"there are no results at {arguments.summarize}")
        lines = read_lines(arguments.summarize)
        text = render(lines, num_expected=len(cases))
        print(text)
        if arguments.write:
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(text, encoding="utf-8")
            atomic_write_json(RECORD, record(lines, num_expected=len(cases)))
        return
    if arguments.replay:
        update = {"guard_doubt": arguments.guard_doubt}
        rules = FROZEN.selection.model_copy(update=update)
        print(render(replay(arguments.replay, replace(FROZEN, selection=rules))))
        return
    if arguments.output is None:
        parser.error("one of --output, --replay and --summarize is needed")
    run_cases(
        cases,
        FROZEN,
        output=arguments.output,
        cache=arguments.cache,
        keep=arguments.tables and arguments.tables.resolve(),
        limit=arguments.limit,
        num_parallel=arguments.parallel,
    )


def list_cases(seeds: Sequence[int], fractions: Sequence[float], num_controls: int) -> list[Case]:
    """Return the runs, one per seed, and the controls, on as many seeds of their own.

    Args:
        seeds: Of the runs; the controls take these first and then those that follow.
        fractions: Of the preference data, dealt to the seeds in turn.
        num_controls: Of each kind.
    """
    cases = [
        Case(kind="run", seed=seed, fraction=fractions[i % len(fractions)])
        for i, seed in enumerate(seeds)
    ]
    for i in range(len(CONTROLS) * num_controls):
        kind = CONTROLS[i // num_controls]
        cases.append(
            Case(
                kind=kind,
                seed=seeds[0] + i,
                fraction=fractions[i % len(fractions)],
                # Of the other half of the seeds.
                other=seeds[0] + i + num_controls if kind == "unrelated" else 0,
                judge=None if i < len(seeds) else seeds[i % len(seeds)],
            )
        )
    return cases


def read_lines(path: Path, digest: str | None = None) -> list[dict[str, Any]]:
    """Return recorded lines, after making sure that they are of one and the same settings.

    Args:
        path: JSON lines; none where it does not exist.
        digest: Of the settings that they must be of; None takes any.
    """
    if not path.exists():
        return []
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    digests = {line["digest"] for line in lines}
    if len(digests | ({digest} if digest else set())) > 1:
        raise SystemExit(f"{path}: lines of other settings ({', '.join(sorted(digests))})")
    return lines


def replay(folder: Path, frozen: Frozen) -> list[dict[str, Any]]:
    """Return the lines of all cases whose answers are kept, under the rules of `frozen`.

    Args:
        folder: Of `--tables`.
        frozen: The settings; answers of other models or prompts are refused.
    """
    names = {field.name for field in fields(Case)}
    lines = []
    for path in sorted(folder.glob("*/case.json")):
        facts, answers = read_answers(path.parent)
        if facts["tables_digest"] != frozen.tables_digest():
            raise SystemExit(f"{path}: answers of other settings ({facts['tables_digest']})")
        case = Case(**{name: facts[name] for name in names})
        line = facts_of(case, frozen, facts["fit"])
        line |= line_of(answers, case, frozen, answers.truths.get)
        lines.append({**line, "commit": _commit()})
    if not lines:
        raise SystemExit(f"there are no answers in {folder}")
    return lines


def run_cases(
    cases: Sequence[Case],
    frozen: Frozen,
    *,
    output: Path,
    cache: Path,
    keep: Path | None = None,
    limit: int | None = None,
    num_parallel: int = NUM_PARALLEL,
) -> None:
    """Measure what is missing, a line each."""
    import ray

    from expo_ray.cluster import ray_session

    lines = read_lines(output, frozen.digest())
    done = {line["key"] for line in lines}
    missing = [case for case in cases if case.key not in done][:limit]
    print(f"{len(done)} cases stand, {len(missing)} to do", flush=True)
    case_of = {case.seed: case for case in reversed(cases)}
    commit = _commit()
    task = ray.remote(num_cpus=1, max_retries=1)(_measure)

    def lab(seed: int) -> LabResult:
        return prepare_lab(cache, frozen.lab_of(case_of[seed]))

    def measure(case: Case) -> dict[str, Any]:
        other = lab(case.other) if case.kind == "unrelated" else None
        judges = None if case.judge is None else lab(case.judge)
        line = ray.get(task.remote(case, frozen, lab(case.seed), other, judges, keep))
        return {**line, "commit": commit}

    # Runs come first: the controls find their laboratories trained.
    with ray_session("local", num_cpus=num_parallel), ThreadPoolExecutor(num_parallel) as pool:
        futures = [pool.submit(measure, case) for case in missing]
        try:
            for future in as_completed(futures):
                lines.append(future.result())
                # Anew as a whole, so that a kill leaves no half line.
                atomic_write_text(output, "".join(json.dumps(line) + "\n" for line in lines))
                print(f"{lines[-1]['key']}: alpha {lines[-1]['chosen']:g}", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _commit() -> str:
    """Return the commit of this code, with a mark where it was changed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _measure(*arguments: Any) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    start, cpu_start = time.monotonic(), time.process_time()
    line = measure_case(*arguments)
    seconds = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu_start}
    return {**line, **seconds}


if __name__ == "__main__":
    main()
