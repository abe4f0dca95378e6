"""Measurements of the project against its floors, its promises and its peers.

Run from the repository's root: `python -m benchmarks` lists them, `python -m benchmarks.NAME` runs
one. A benchmark is a module here with a `main`, whose docstring says in its first line what it
measures and ends with `Needs: ... Takes: ...`; there is no other place to register it. What one run
printed is kept in `results/`.
"""

import os
from pathlib import Path

# Ray's workers look for modules of ours; the folder of the driver is not on their path.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).resolve().parents[1]), os.getenv("PYTHONPATH")])
)
