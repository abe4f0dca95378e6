"""The Ray Serve configuration of a verdict, ready for `serve deploy`."""

from __future__ import annotations

from typing import Any

import yaml

from expo_ray.checkpoints import atomic_write_text
from expo_ray.serving.source import ModelSource
from expo_ray.workflow.recipe import GeneratorSettings
from expo_ray.workflow.run_dir import RunDir

IMPORT_PATH = "expo_ray.serving.app:build_app"


def write_serve_config(
    directory: RunDir, source: ModelSource, settings: GeneratorSettings, *, headline: str
) -> None:
    """Write `serve_config.yaml`: the model that the run decided for, as the run served it.

    Args:
        directory: Where to.
        source: The chosen checkpoint, the pair that makes it up, or the aligned model.
        settings: Engine and replicas.
        headline: The verdict, for whoever opens the file.
    """
    arguments: dict[str, Any] = {
        "model": source.model,
        "initial": source.initial,
        "alpha": source.alpha,
        **settings.model_dump(exclude_defaults=True),
    }
    document = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            {
                "name": "expo",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {key: value for key, value in arguments.items() if value is not None},
            }
        ],
    }
    header = (
        f"# {headline}.\n"
        "# On a running Ray cluster (ray start --head): serve deploy serve_config.yaml\n"
        "# Every node must see the model's path. Without an API key in front of it (args:\n"
        "# api_key_env: NAME of an environment variable), leave the host as it is.\n"
    )
    text = header + yaml.safe_dump(document, sort_keys=False)
    atomic_write_text(directory.serve_config_file, text)
