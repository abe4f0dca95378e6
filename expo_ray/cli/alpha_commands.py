"""Commands on the alpha of a running service: alpha set, alpha show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expo_ray.cli.model_options import add_command
from expo_ray.cli.session import OutputFlags, Session, key_value_table

app = typer.Typer(
    help="See or change alpha of a running service.",
    epilog="Example: expo-ray alpha set 0.3 --url http://127.0.0.1:8000",
    no_args_is_help=True,
)

Url = Annotated[str, typer.Option(metavar="URL", help="URL of the service, as serve printed it.")]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Environment variable that holds the service's API key."),
]


def set_(
    url: Url,
    alpha: Annotated[
        str | None,
        typer.Argument(help="The new alpha; 0 is the aligned model. Negative: after `--`."),
    ] = None,
    alpha_rules: Annotated[
        Path | None,
        typer.Option(help="YAML: an alpha for each part of the model; ALPHA is of the rest."),
    ] = None,
    api_key_env: ApiKeyEnv = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="How long requests inside may take to finish.",
        ),
    ] = 300.0,
    *,
    shown: OutputFlags,
) -> None:
    """Bring all replicas of a service to another alpha, or to rules for its parts, in place.

    Only where it was started by `expo-ray serve ... --allow-alpha-change`. Requests inside finish
    first, by the old weights; requests for the old name get 404 from then on.

    Example: expo-ray alpha set 0.3 --url http://127.0.0.1:8000
    """
    from expo_ray.credentials import read_api_key
    from expo_ray.serving import set_alpha

    with Session(**shown) as session:
        state = set_alpha(
            alpha,
            alpha_rules=alpha_rules,
            url=url,
            api_key=read_api_key(api_key_env),
            drain_seconds=drain_seconds,
        )
        _emit(session, state)


def show(
    url: Url,
    api_key_env: ApiKeyEnv = None,
    *,
    shown: OutputFlags,
) -> None:
    """Show the current alpha of a service, and what every replica holds.

    Example: expo-ray alpha show --url http://127.0.0.1:8000
    """
    from expo_ray.credentials import read_api_key
    from expo_ray.serving import get_alpha

    with Session(**shown) as session:
        _emit(session, get_alpha(url=url, api_key=read_api_key(api_key_env)))


def _emit(session: Session, state: dict[str, Any]) -> None:
    hidden = ("object", "replicas", "alpha" if state["alpha_rules"] else "alpha_rules")
    facts = {key: value for key, value in state.items() if key not in hidden}
    facts["replicas"] = len(state["replicas"])
    session.emit(state, lambda console: console.print(key_value_table(facts)))


add_command(app, set_, name="set")
add_command(app, show)
