"""Ray job entry point: the whole pipeline of one recipe, on the cluster that runs the job.

    ray job submit --working-dir . -- python pipelines/run.py pipelines/recipes/quickstart.yaml \
        --set output=/shared/runs/quickstart

Give `output` on storage that all nodes share. Submitting the same job again continues the run.
"""

from __future__ import annotations

import argparse
import sys

from expo_ray.cli.session import Session, print_error
from expo_ray.errors import ExpoError
from expo_ray.workflow.run import run


def main() -> int:
    """Run the recipe named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    with Session(json_output=True) as session:
        try:
            result = run(arguments.recipe, overrides=arguments.overrides, progress=session.progress)
        except ExpoError as error:
            print_error(error, json_output=True)
            return error.exit_code
        session.emit(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
