"""What the checkpoint commands print for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from expo_ray.cli.session import format_bytes, key_value_table, new_table
from expo_ray.extrapolation.pairing.modules import stack_labels


def render_doctor(console: Console, result: dict[str, Any]) -> None:
    """Print what every node has, and what keeps one from taking part."""
    table = new_table("node", "ray", "torch", "memory free", "disk free", "clock")
    for node in result["nodes"]:
        table.add_row(
            Text(node["node"]),
            node["versions"].get("ray", "-"),
            node["versions"].get("torch", "-"),
            format_bytes(node["memory_free_bytes"] or 0),
            format_bytes(min(node["disk_free_bytes"].values())),
            f"{node['clock_offset_seconds']:.1f} s off",
        )
    console.print(table)
    for problem in result["problems"]:
        console.print(Text(f"problem: {problem}", style="red"))
    if result["ok"]:
        console.print(
            f"[green]fit[/green]: {len(result['nodes'])} nodes can take part in a run.", markup=True
        )


def render_extrapolation(console: Console, result: dict[str, Any]) -> None:
    """Print the plan, the checkpoints and what was read and written."""
    plan = result["plan"]
    console.print(
        key_value_table(
            {
                "parameters": f"{plan['num_parameters']:,} in {plan['num_tensors']:,} tensors",
                "tasks": f"{plan['num_shards']} output shards, "
                f"{format_bytes(plan['worker_memory_bytes'])} declared per task",
                "input": format_bytes(plan["bytes_in"]),
                "output": format_bytes(plan["bytes_out"]),
            }
        )
    )
    if path := plan["trajectory"]:
        passes = ", each read twice" if path["bytes_gram_pass"] else ""
        console.print(
            f"{path['num_checkpoints']} checkpoints from step {path['steps'][0]:g} to "
            f"{path['steps'][-1]:g}, fit {path['fit']}, from {path['from']}{passes}.",
            highlight=False,
        )
    columns = ("checkpoint", "step" if path else "alpha")
    table = new_table(*columns, "status", "size", "shards", "weights digest")
    for output in result["outputs"]:
        table.add_row(
            Text(output["path"]),
            _alpha_text(output["alpha"]),
            output["status"],
            format_bytes(output["num_bytes"]),
            str(output["num_shards"]),
            (output["weights_digest"] or "-")[:23],
        )
    console.print(table)
    for output in result["outputs"]:
        if output["pushed_to"]:
            console.print(Text(f"pushed to {output['pushed_to']}"), soft_wrap=True)
    if plan.get("estimate"):
        found = plan["estimate"]
        console.print(
            f"About {found['seconds']:.0f} s on {found['num_nodes']} nodes, "
            f"{found['node_hours']:.1f} node-hours ({found['num_tasks']} tasks, "
            f"no schedule beats {found['lower_bound_seconds']:.0f} s, "
            f"nodes idle {found['share_idle']:.0%} of it; a smaller --max-shard-size gives more "
            "tasks to share).",
            highlight=False,
        )
    if result["num_skipped"]:
        told = "Skipped what was complete: its sizes fit, `expo-ray verify` reads its contents."
        console.print(told, highlight=False, markup=False)
    for note in result["notes"]:
        style = "yellow" if "warning: " in note else "dim"
        console.print(Text(f"note: {note}", style=style))
    if result["dry_run"]:
        console.print("Dry run: nothing was written.")
    else:
        resumed = f", {result['num_resumed']} shards were there already"
        console.print(
            f"Read {format_bytes(result['bytes_read'])}, wrote "
            f"{format_bytes(result['bytes_written'])} in {result['seconds']:.1f} s"
            f"{resumed if result['num_resumed'] else ''}."
        )


def _alpha_text(alpha: float | None) -> str:
    return "by rules" if alpha is None else f"{alpha:g}"


def render_verification(console: Console, result: dict[str, Any]) -> None:
    """Print what was compared, and how."""
    how = "recomputed from the inputs" if result["recomputed"] else "compared with their receipts"
    console.print(
        f"[green]verified[/green] {result['num_tensors']:,} tensors "
        f"({format_bytes(result['num_bytes'])}) {how}, alpha {_alpha_text(result['alpha'])}",
        markup=True,
    )
    console.print(key_value_table({"weights digest": result["weights_digest"]}))
    for note in result["notes"]:
        console.print(Text(f"note: {note}", style="yellow"))
    for name, digest in (result["sha256"] or {}).items():
        console.print(Text(f"{digest}  {name}"), soft_wrap=True)


def render_inspection(console: Console, result: dict[str, Any], *, every_tensor: bool) -> None:
    """Print what the headers say; every tensor where that is asked for."""
    facts = {
        "checkpoint": result["uri"],
        "architecture": ", ".join(result["architectures"] or ["unknown"]),
        "parameters": f"{result['num_parameters']:,} in {result['num_tensors']:,} tensors",
        "dtypes": ", ".join(f"{k}: {v:,}" for k, v in result["dtypes"].items()),
        "quantization": result["quantization"],
        "size": f"{format_bytes(result['num_bytes'])} in {result['num_shards']} shards",
        "tied embeddings": "yes" if result["tie_word_embeddings"] else "no",
        "carried files": ", ".join(result["sidecars"]),
    }
    if result["extrapolated"]:
        facts["extrapolated"] = _origin_text(result["extrapolated"])
    console.print(key_value_table(facts))
    if every_tensor:
        table = new_table("tensor", "dtype", "shape", "file")
        for tensor in result["tensors"]:
            shape = " x ".join(map(str, tensor["shape"])) or "scalar"
            table.add_row(Text(tensor["name"]), tensor["dtype"], shape, tensor["file"])
        console.print(table)
    else:
        console.print("-v lists every tensor", style="dim")


def _origin_text(origin: dict[str, Any]) -> str:
    """Return what an output was made of: two models, or a fit over the steps of a training."""
    path = origin["trajectory"]
    if path is None:
        alpha = _alpha_text(origin["alpha"])
        return f"alpha {alpha} from {origin['initial']} and {origin['aligned']}"
    steps = path["steps"]
    at = "" if path["at_step"] is None else f" at step {path['at_step']:g}"
    fit = f"{path['fit']} over {len(steps)} checkpoints, steps {steps[0]:g} to {steps[-1]:g}"
    if path["from"] == "fitted":
        return f"the model of {fit}{at}; last {origin['aligned']}"
    return f"alpha {_alpha_text(origin['alpha'])}{at} from {origin['aligned']} along {fit}"


def _render_layers(console: Console, layers: list[dict[str, Any]]) -> None:
    """Draw relative delta by layer and module as a heat map: the redder, the larger."""
    groups = list(dict.fromkeys(g for row in layers for g in row["relative_delta_by_group"]))
    values = [v for row in layers for v in row["relative_delta_by_group"].values() if v]
    largest = max(values, default=1.0)
    table = new_table("layer", *groups)
    labels = stack_labels(row["stack"] for row in layers)
    for row in layers:
        cells = []
        for group in groups:
            value = row["relative_delta_by_group"].get(group)
            shade = round(4 * (value or 0.0) / largest)
            text = "-" if value is None else f"{value:.2e}"
            cells.append(Text(text, style=("dim", "", "yellow", "red", "bold red")[shade]))
        table.add_row(f"{labels[row['stack']]} {row['layer']}".strip(), *cells)
    console.print("|delta|/|initial| by layer and module:")
    console.print(table)


def render_diagnosis(console: Console, result: dict[str, Any], *, every_layer: bool) -> None:
    """Print delta by module group, the published scales and the verdict."""
    roles = {"initial": "theta0, before alignment", "aligned": "theta1, after it"}
    for side, role in roles.items():
        console.print(Text(f"{side}: {result[side]} ({role})"), soft_wrap=True)
    table = new_table(
        "module group", "tensors", "|delta|/|initial|", "cosine", "delta rms", "moved"
    )
    for name, group in {**result["groups"], "all matrices": result["matrices"]}.items():
        table.add_row(
            name,
            f"{group['num_tensors']:,}",
            f"{group['relative_delta']:.3g}",
            f"{group['cosine']:.5f}",
            f"{group['mean_delta_rms']:.2e}",
            f"{group['share_moved']:.1%}",
        )
    console.print(table)
    if every_layer and result["layers"]:
        _render_layers(console, result["layers"])
    for scale in result["published_scales"]:
        console.print(
            f"published {scale['step']}: delta rms {scale['mean_delta_rms']:.2e}", highlight=False
        )
    console.print("moved: share of the values that differ between the two models", style="dim")
    for note in result["notes"]:
        console.print(Text(f"note: {note}"))
    for warning in result["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))
    verdict = "[green]fit[/green]" if result["fit"] else "[red]not fit[/red]"
    is_doubted = result["fit"] and result["warnings"]
    but = ", if what the warnings ask is as it should be" if is_doubted else ""
    console.print(f"This pair is {verdict} for extrapolation{but}.", markup=True)
