"""Commands on running models: serve, generate, score, loadtest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expo_ray.cli import alpha_commands
from expo_ray.cli.loadtest_command import loadtest
from expo_ray.cli.reward_commands import score
from expo_ray.cli.session import (
    AddressOption,
    JsonFlag,
    QuietFlag,
    Session,
    VerboseFlag,
    from_flags,
    key_value_table,
)
from expo_ray.errors import ConfigError
from expo_ray.serving.sampling import PAPER_SAMPLING, SamplingParams

if TYPE_CHECKING:
    from expo_ray.serving import EngineOptions

Model = Annotated[
    str,
    typer.Argument(
        help="A checkpoint: a path, s3://, gs://, hf://, a Hub id, or a LoRA adapter; "
        "with --initial, the aligned one."
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        help="JSONL, JSON, Parquet or CSV: a file, s3://, gs://, or a dataset on the Hub: "
        "hf://datasets/OWNER/NAME, with @REVISION, /FILE and #split=NAME where needed."
    ),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(help="Column of the prompts, where it has another name."),
]
NumPrompts = Annotated[
    int | None, typer.Option(min=1, help="Use so many prompts, drawn at random by --seed.")
]
InitialOption = Annotated[
    str | None, typer.Option(help="theta0: serve MODEL + alpha * (MODEL - INITIAL), in memory.")
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        help="alpha of the live extrapolation; beside --alpha-rules, for tensors without a rule."
    ),
]
AlphaRulesOption = Annotated[
    str | None,
    typer.Option(
        help="YAML file that gives parts of the model their own alpha, as for extrapolate."
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="transformers (embedded), vllm, or auto: vllm if it is installed and there is a GPU. "
        "On a CPU both compute in float32, uncompiled; vllm in bfloat16 where the weights are and "
        "the processor has AMX (--engine-arg dtype=... decides)."
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of prompt and response; the model's context otherwise."),
]
TensorParallel = Annotated[
    int, typer.Option(min=1, help="Devices that share each layer (vllm only).")
]
EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        metavar="K=V",
        help="vLLM's own engine argument, such as pipeline_parallel_size=2; may repeat.",
    ),
]
Replicas = Annotated[int, typer.Option(min=1, help="Replicas of the model.")]
PANEL = "Serving"


def sampling_option(name: str, **limits: Any) -> Any:
    """Return a flag that says what happens where it is left out."""
    field = SamplingParams.model_fields[name]
    text = f"{field.description} (default: {field.default})"
    return typer.Option(help=text, show_default=False, **limits)


Temperature = Annotated[float | None, sampling_option("temperature", min=0)]
TopP = Annotated[float | None, sampling_option("top_p", min=0, max=1)]
TopK = Annotated[int | None, sampling_option("top_k", min=0)]
Stop = Annotated[list[str] | None, typer.Option(help="Stop at this text; may repeat.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    app.command(rich_help_panel=PANEL)(serve)
    app.command(rich_help_panel=PANEL)(generate)
    app.command(rich_help_panel=PANEL)(score)
    app.command(rich_help_panel=PANEL)(loadtest)
    app.add_typer(alpha_commands.app, name="alpha", rich_help_panel=PANEL)


def serve(
    model: Model,
    initial: InitialOption = None,
    alpha: AlphaOption = None,
    alpha_rules: AlphaRulesOption = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            help="Also serve this reward model: POST /v1/rewards scores `messages` that end with "
            "a response; a pairwise model compares it with the `reference` of the request."
        ),
    ] = None,
    engine: EngineOption = "auto",
    replicas: Replicas = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Let the autoscaler add replicas up to so many.")
    ] = None,
    max_model_len: MaxModelLen = None,
    tensor_parallel_size: TensorParallel = 1,
    engine_arg: EngineArgs = None,
    allow_alpha_change: Annotated[
        bool,
        typer.Option(
            "--allow-alpha-change",
            help="Let clients (who have the key) change alpha while it runs: expo-ray alpha set.",
        ),
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Without a key, answer clients that use this name, too (may repeat): a web page "
            "could send requests by a name of its own."
        ),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the key clients must send."),
    ] = None,
    address: AddressOption = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Serve a model through Ray Serve, with the OpenAI API, until interrupted.

    Under --json every event is one line; {"event": "ready"} comes once requests are answered.

    Example: expo-ray serve ./dpo --initial ./sft --alpha 0.3 --port 8000
    """
    from expo_ray.serving import serve as run_serve

    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:

        def show(event: dict[str, Any]) -> None:
            if json_output:
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
            reward_model=reward_model,
            engine=engine,
            options=_engine_options(max_model_len, tensor_parallel_size, engine_arg),
            num_replicas=replicas,
            max_replicas=max_replicas,
            allow_alpha_change=allow_alpha_change,
            host=host,
            port=port,
            allowed_hosts=allow_host or (),
            api_key_env=api_key_env,
            address=address,
            on_event=show,
        )


def _engine_options(
    max_model_len: int | None, tensor_parallel_size: int, engine_args: list[str] | None
) -> EngineOptions:
    from expo_ray.serving import EngineOptions, parse_engine_args

    return EngineOptions(
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        engine_args=parse_engine_args(engine_args or ()),
    )


def _curl_example(event: dict[str, Any]) -> str:
    body = {"model": event["stable_model"], "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"curl {event['url']}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


_PAPER_SETTINGS = ", ".join(
    f"{name} {value}"
    for name, value in PAPER_SAMPLING.model_dump(exclude={"stop", "num_samples"}).items()
)


def generate(
    model: Model,
    prompts: Prompts,
    output: Annotated[str, typer.Option(help="Responses table to write (Parquet).")],
    initial: InitialOption = None,
    alpha: AlphaOption = None,
    alpha_rules: AlphaRulesOption = None,
    prompt_column: PromptColumn = None,
    num_prompts: NumPrompts = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Defaults of the method's authors: paper ({_PAPER_SETTINGS})."),
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_tokens: Annotated[int | None, sampling_option("max_tokens", min=1)] = None,
    num_samples: Annotated[int | None, sampling_option("num_samples", min=1)] = None,
    stop: Stop = None,
    seed: Annotated[int | None, sampling_option("seed", min=0)] = None,
    engine: EngineOption = "auto",
    replicas: Replicas = 1,
    max_model_len: MaxModelLen = None,
    tensor_parallel_size: TensorParallel = 1,
    engine_arg: EngineArgs = None,
    address: AddressOption = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Answer every prompt and write the responses table; a rerun continues.

    The seed of a row depends on --seed, prompt and sample alone: models are compared under the
    same noise.

    Example: expo-ray generate ./expo --prompts prompts.jsonl --output responses.parquet
    """
    from expo_ray.serving import generate as run_generate

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_tokens": max_tokens,
        "num_samples": num_samples,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if preset not in (None, "paper"):
        raise ConfigError("unknown preset", where="--preset", got=preset, expected="paper")
    base = PAPER_SAMPLING if preset == "paper" else SamplingParams()
    sampling = from_flags(SamplingParams, {**base.model_dump(), **changes})
    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
        result = run_generate(
            model,
            prompts=prompts,
            output=output,
            columns={} if prompt_column is None else {"prompt": prompt_column},
            num_prompts=num_prompts,
            initial=initial,
            alpha=alpha,
            alpha_rules=alpha_rules,
            sampling=sampling,
            engine=engine,
            options=_engine_options(max_model_len, tensor_parallel_size, engine_arg),
            num_replicas=replicas,
            address=address,
            progress=session.progress,
        )
        session.emit(result, lambda console: console.print(key_value_table(result)))
