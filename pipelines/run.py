"""Ray job entry point: the whole pipeline of one recipe, on the cluster that runs the job.

    ray job submit --working-dir . -- python pipelines/run.py pipelines/recipes/quickstart.yaml \
        --set output=/shared/runs/quickstart

Give `output` on storage that all nodes share. Submitting the same job again continues the run.
"""

from __future__ import annotations

import argparse
import sys

from expo_ray.cli.endings import exit_code_of
from expo_ray.cli.session import Session
from expo_ray.workflow.run import run


def main() -> int:
    """Run the recipe named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()

    def pipeline() -> None:
        with Session(json_output=True) as session:
            session.emit(
                run(arguments.recipe, overrides=arguments.overrides, progress=session.progress)
            )

    # Whoever reads the log of a job wants the traceback in it.
    return exit_code_of(pipeline, ["--json", "--verbose"])


if __name__ == "__main__":
    sys.exit(main())
