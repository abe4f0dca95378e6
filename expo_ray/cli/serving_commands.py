"""Commands on running models: serve, generate, score, loadtest."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from expo_ray.cli import alpha_commands
from expo_ray.cli.loadtest_command import loadtest
from expo_ray.cli.model_options import FlagsOf, Given, add_command, from_flags
from expo_ray.cli.options import (
    AlphaOption,
    AlphaRulesOption,
    CheckedColumns,
    EngineFlags,
    EngineOption,
    ExtraTensors,
    InitialOption,
    NumPrompts,
    OptionalModel,
    Preset,
    PromptColumn,
    Prompts,
    ReasoningOption,
    Replicas,
    named_columns,
    preset_sampling,
)
from expo_ray.cli.reward_commands import score
from expo_ray.cli.session import AddressOption, OutputFlags, Session, key_value_table
from expo_ray.cli.trajectory_options import (
    FitOption,
    TrajectoryOption,
    WeightsOption,
    parse_weights,
    refuse_beside,
)
from expo_ray.serving.engines.options import ENGINE_PANEL, EngineOptions
from expo_ray.serving.sampling import SamplingParams

PANEL = "Serving"
_CLIENTS = "Who may call"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    for command in (serve, generate, score, loadtest):
        add_command(app, command, panel=PANEL)
    app.add_typer(alpha_commands.app, name="alpha", rich_help_panel=PANEL)


def serve(
    model: OptionalModel = None,
    initial: InitialOption = None,
    alpha: AlphaOption = None,
    alpha_rules: AlphaRulesOption = None,
    extra_tensors: ExtraTensors = None,
    trajectory: TrajectoryOption = None,
    fit: FitOption = None,
    weights: WeightsOption = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also serve this reward model: POST /v1/rewards scores `messages`.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable that holds the key clients must send.",
            rich_help_panel=_CLIENTS,
        ),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Without a key, also answer clients that use this name; may repeat.",
            rich_help_panel=_CLIENTS,
        ),
    ] = None,
    allow_alpha_change: Annotated[
        bool,
        typer.Option(
            "--allow-alpha-change",
            help="Let clients change alpha while it runs: expo-ray alpha set.",
            rich_help_panel=_CLIENTS,
        ),
    ] = False,
    engine: EngineOption = "auto",
    num_replicas: Replicas = 1,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Let the autoscaler add replicas up to so many.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None,
    *,
    options: EngineFlags,
    address: AddressOption = None,
    shown: OutputFlags,
) -> None:
    """Serve a model through Ray Serve, with the OpenAI API, until interrupted.

    --trajectory FILE --alpha A goes on from the last checkpoint of a training, along a fit. Under
    --json every event is one line; {"event": "ready"} comes once requests are answered.

    Example: expo-ray serve ./dpo --initial ./sft --alpha 0.3 --port 8000
    """
    from expo_ray.serving import serve as run_serve

    with Session(**shown) as session:

        def show(event: dict[str, Any]) -> None:
            if session.json_output:
                session.emit(event)
            elif event["event"] == "starting":
                engine = f"engine {event['engine']} ({event['engine_reason']})"
                session.progress.message(f"starting {event['model']}: {engine}")
                if event["precision"]:
                    session.progress.message(str(event["precision"]))
            elif event["event"] == "ready":
                session.stdout.print(f"{event['model']} is ready at {event['url']}", markup=False)
                session.stdout.print(_curl_example(event), soft_wrap=True, markup=False)
                session.stdout.print("Ctrl-C stops it.")
            else:
                session.progress.message(str(event["event"]))

        run_serve(
            model,
            initial=initial,
            alpha=alpha,
            alpha_rules=alpha_rules,
            extra_tensors=extra_tensors or (),
            **_path_of(trajectory, fit, weights),
            reward_model=reward_model,
            engine=engine,
            options=from_flags(EngineOptions, options),
            num_replicas=num_replicas,
            max_replicas=max_replicas,
            allow_alpha_change=allow_alpha_change,
            host=host,
            port=port,
            allowed_hosts=allowed_hosts or (),
            api_key_env=api_key_env,
            address=address,
            on_event=show,
        )


def _path_of(trajectory: str | None, fit: str | None, weights: str | None) -> dict[str, Any]:
    """Return the arguments of a trajectory; none for a pair or a checkpoint."""
    if trajectory is None:
        refuse_beside("trajectory", {"fit": fit, "weights": weights}, is_needed=True)
        return {}
    return {"trajectory": trajectory, "fit": fit or "line", "weights": parse_weights(weights)}


def _curl_example(event: dict[str, Any]) -> str:
    body = {"model": event["stable_model"], "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"curl {event['url']}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


def generate(
    model: OptionalModel = None,
    *,
    prompts: Prompts,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="Responses table to write (Parquet).")
    ],
    initial: InitialOption = None,
    alpha: AlphaOption = None,
    alpha_rules: AlphaRulesOption = None,
    extra_tensors: ExtraTensors = None,
    trajectory: TrajectoryOption = None,
    fit: FitOption = None,
    weights: WeightsOption = None,
    columns: PromptColumn = None,
    checked_columns: CheckedColumns = None,
    num_prompts: NumPrompts = None,
    preset: Preset = None,
    sampling: Annotated[Given, FlagsOf(SamplingParams)],
    reasoning: ReasoningOption = "auto",
    engine: EngineOption = "auto",
    num_replicas: Replicas = 1,
    options: EngineFlags,
    address: AddressOption = None,
    shown: OutputFlags,
) -> None:
    """Answer every prompt and write the responses table; a rerun continues.

    --trajectory FILE --alpha A goes on from the last checkpoint of a training, along a fit. The
    seed of a row depends on --seed, prompt and sample alone: models are compared under the
    same noise.

    Example: expo-ray generate ./expo --prompts prompts.jsonl --output responses.parquet
    """
    from expo_ray.serving import generate as run_generate

    with Session(**shown) as session:
        result = run_generate(
            model,
            prompts=prompts,
            output=output,
            columns=named_columns(columns, checked_columns),
            num_prompts=num_prompts,
            initial=initial,
            alpha=alpha,
            alpha_rules=alpha_rules,
            extra_tensors=extra_tensors or (),
            **_path_of(trajectory, fit, weights),
            sampling=from_flags(SamplingParams, preset_sampling(preset) | sampling),
            reasoning=reasoning,
            engine=engine,
            options=from_flags(EngineOptions, options),
            num_replicas=num_replicas,
            address=address,
            progress=session.progress,
        )
        session.emit(result, lambda console: console.print(key_value_table(result)))
