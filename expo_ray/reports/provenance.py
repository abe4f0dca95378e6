"""Where the result comes from and what to do with it: inputs, versions, digests, commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from expo_ray.reports.run_files import RunFiles
from expo_ray.reports.tries import Step, further_tries
from expo_ray.reports.wording import format_alpha

_SHOWN_APART = {"schema_version", "initial", "aligned", "recipe", "versions_of_inputs"}


# Of a trajectory, what lies between its first and its last checkpoint: `step 200`.
_STEP = "step "


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what resolved.json says, as flat (name, value) rows."""
    rest = {
        key: value
        for key, value in run.resolved.items()
        if key not in _SHOWN_APART and not key.startswith(_STEP)
    }
    return list(_flatten("", rest))


def training_facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what lab.json says, as flat (name, value) rows."""
    return list(_flatten("", {k: v for k, v in run.lab.items() if k != "schema_version"}))


def input_files(run: RunFiles) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return (role, location, files with their identities) of all parents."""
    inputs = []
    between = [name for name in run.resolved if name.startswith(_STEP)]
    for role in ("initial", *between, "aligned"):
        recorded = run.resolved.get(role)
        if isinstance(recorded, dict):
            inputs.append((role, str(recorded.get("uri", "")), list(recorded.get("files", ()))))
    return inputs


def written_checkpoints(run: RunFiles) -> list[tuple[str, str, int]]:
    """Return (alpha, weights digest, bytes) of the checkpoints that are still there."""
    return [
        (
            format_alpha(alpha),
            str(record.get("weights_digest", "")),
            sum(int(file.get("bytes", 0)) for file in _receipts(record)),
        )
        for alpha, record in run.checkpoints.items()
    ]


def next_steps(run: RunFiles) -> list[Step]:
    """Return the commands that a reader of this verdict wants next."""
    aligned = _location(run, "aligned")
    if run.selection["verdict"] != "extrapolate":
        return [
            Step(what="Serve the aligned model", command=f"expo-ray serve {aligned}"),
            *_deploy(run),
            *_another_try(run),
        ]
    alpha = run.selection["best_alpha"]
    number = format_alpha(alpha)
    steps = []
    if alpha in run.checkpoints:
        checkpoint = shlex.quote(str(run.path / "checkpoints" / f"alpha-{number}"))
        steps += [
            Step(what="Serve the chosen checkpoint", command=f"expo-ray serve {checkpoint}"),
            Step(what="Check it bit for bit", command=f"expo-ray verify {checkpoint}"),
        ]
    flags = "".join(f" {flag}" for flag in _extrapolation_flags(run))
    return [
        *steps,
        Step(
            what="Write the chosen checkpoint" + (" somewhere else" if steps else ""),
            command=f"expo-ray extrapolate {_pair(run)} OUTPUT --alpha {number}{flags}",
        ),
        *_deploy(run),
        Step(
            what="Or serve it without writing it",
            command=f"expo-ray serve {_live_pair(run)} --alpha {number}",
        ),
        *_by_part(run),
        *further_tries(run),
    ]


def _another_try(run: RunFiles) -> list[Step]:
    if run.selection.get("unfit"):
        allow = Step(
            what="Evaluate it all the same, in this directory (`select`: --allow-unfit)",
            command="expo-ray run RECIPE --set extrapolation.allow_unfit=true",
        )
        return [allow]
    return further_tries(run)


def _pair(run: RunFiles) -> str:
    """Return what the candidates were made from, as `extrapolate` takes it."""
    return along(run) or f"{_location(run, 'initial')} {_location(run, 'aligned')}"


def _live_pair(run: RunFiles) -> str:
    """Return the same as `serve` takes it."""
    return along(run) or f"{_location(run, 'aligned')} --initial {_location(run, 'initial')}"


def along(run: RunFiles) -> str | None:
    """Return the flags of a trajectory; None for a pair."""
    path = run.resolved.get("recipe", {}).get("trajectory")
    if not path:
        return None
    flags = f"--trajectory {shlex.quote(path['file'])} --fit {shlex.quote(path['fit'])}"
    if path["weights"]:
        flags += f" --weights {','.join(map(str, path['weights']))}"
    return flags


def _by_part(run: RunFiles) -> list[Step]:
    rules = run.path / "alpha_rules.yaml"
    if not (run.selection.get("adaptive") or {}).get("is_better") or not rules.is_file():
        return []
    flag = f"--alpha-rules {shlex.quote(str(rules))}"
    return [
        Step(
            what="Write the model with an alpha for each part, which was better still",
            command=f"expo-ray extrapolate {_pair(run)} OUTPUT {flag}",
        ),
        Step(
            what="Or serve it without writing it, too",
            command=f"expo-ray serve {_live_pair(run)} {flag}",
        ),
    ]


def _deploy(run: RunFiles) -> list[Step]:
    config = run.path / "serve_config.yaml"
    if not config.is_file():
        return []
    command = f"serve deploy {shlex.quote(str(config))}"
    return [Step(what="Deploy it on a running Ray cluster", command=command)]


def _extrapolation_flags(run: RunFiles) -> Iterator[str]:
    """Yield the flags under which the candidates were made, where they are not the defaults."""
    settings = run.resolved.get("recipe", {}).get("extrapolation", {})
    for key, usual in (("output_dtype", "auto"), ("vocab_policy", "refuse")):
        if settings.get(key, usual) != usual:
            yield f"--{key.replace('_', '-')} {shlex.quote(str(settings[key]))}"
    for spec in settings.get("extra_tensors", ()):
        yield f"--extra-tensors {shlex.quote(str(spec))}"


def _location(run: RunFiles, role: str) -> str:
    recorded = run.resolved.get(role)
    uri = recorded.get("uri") if isinstance(recorded, dict) else None
    return shlex.quote(str(uri)) if uri else role.upper()


def _receipts(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    files = record.get("files", ())
    entries = files.values() if isinstance(files, dict) else files
    return [entry for entry in entries if isinstance(entry, dict)]


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        yield prefix, ", ".join(_plain(item) for item in value)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flatten(f"{prefix}.{index}", inner)
    else:
        yield prefix, _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return format(value, ".6g")
    return "none" if value is None else str(value)
