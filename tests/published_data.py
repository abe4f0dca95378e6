"""Fetches the published data that some tests compare with: `make data`.

    python -m tests.published_data [--folder data] [--base-url URL]

These are prompts, responses and judgements of the AlpacaEval set, from the repository of the
method's authors, at one commit; every file is checked against its SHA-256 here. AlpacaEval's
prompts and outputs are CC BY-NC 4.0 (not for commercial use), so they are no part of this project:
whoever runs this gets them from their source. Without them the tests that need exactly them are
skipped; everything else is tested on samples of our own (`tests/samples.py`).

The digests were computed from a clone of that commit. The addresses themselves have not been tried
from where this was written, which reaches no GitHub: they follow its form for raw files, and the
script was tried against a local server with the same paths.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "04e04f5969c58393385fcfa2702f5d6f772bb5fd"
BASE_URL = f"https://raw.githubusercontent.com/chujiezheng/LLM-Extrapolation/{COMMIT}"
TIMEOUT_SECONDS = 60

# Path under data/alpaca_eval: (path in the repository, SHA-256).
FILES = {
    "leaderboard.csv": (
        "results_alpaca/leaderboard.csv",
        "858108db0593b4fa1baaa96685dc5206a0ec186455afb6c0951ebc4300b124a1",
    ),
    "annotations/zephyr-7b-sft-full.json": (
        "results_alpaca/zephyr-7b-sft-full/annotations.json",
        "4abcd190d811d2be4bc794bed4d5a92b232a4ad4d800d899b86751f73505def1",
    ),
    "annotations/zephyr_0.05.json": (
        "results_alpaca/zephyr_0.05/annotations.json",
        "b5f04b634d3cb9cc22863d8123d1a4545e9f96ab6c60cb9261fa54a47b6cb100",
    ),
    "outputs/tulu-2-dpo-70b-ExPO.json": (
        "results_alpaca/tulu-2-dpo-70b-ExPO.json",
        "8549e23c986faada05e5ebd561b01458840b55cfd11f991af0323f74d41452d7",
    ),
    "outputs/tulu-2-dpo-70b.json": (
        "results_alpaca/tulu-2-dpo-70b.json",
        "c7e323162b54b9db35c2ae69e3387a8d2662d2cc4b779dfabfbf2420c8013ad2",
    ),
    "outputs/zephyr-7b-sft-full.json": (
        "results_alpaca/zephyr-7b-sft-full.json",
        "3f7759606b389d04950a3dce9c91671dbd1c53095377527ce7a638c674bf6807",
    ),
    "outputs/zephyr_0.2.json": (
        "results_alpaca/zephyr_0.2.json",
        "dd8766ea5bbaaf11c48b2250914ec0bc9e80242e78cd45a7b2fdd0462ce0169a",
    ),
    "outputs/zephyr_0.2_a2.5.json": (
        "results_alpaca/zephyr_0.2_a2.5.json",
        "07241725cb2746b2d5aaf87a88c18455499e73b1795793765a32191ee5a93866",
    ),
}
# The prompts are those of the responses, numbered in their order; written last.
PROMPTS = "prompts.jsonl"
PROMPTS_FROM = "outputs/zephyr-7b-sft-full.json"


def find_data() -> Path | None:
    """Return the folder of the published data, if it is complete somewhere."""
    for folder in (ROOT / "data", ROOT.parent / "shared" / "data"):
        if (folder / "alpaca_eval" / PROMPTS).is_file():
            return folder
    return None


def fetch(folder: Path, base_url: str = BASE_URL) -> None:
    """Bring every missing file into `folder`; what lies there unchanged is not fetched again.

    Raises:
        SystemExit: A file cannot be had, or is not the one that was published.
    """
    target = folder / "alpaca_eval"
    # Of a fetch that ends early there must be no trace of completeness.
    (target / PROMPTS).unlink(missing_ok=True)
    with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True) as client:
        for name, (source, sha256) in FILES.items():
            path = target / name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                continue
            content = _download(client, f"{base_url.rstrip('/')}/{source}", sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    rows = json.loads((target / PROMPTS_FROM).read_text("utf-8"))
    lines = [
        json.dumps(
            {
                "prompt_id": f"alpaca_eval-{i}",
                "dataset": row["dataset"],
                "instruction": row["instruction"],
            },
            ensure_ascii=False,
        )
        for i, row in enumerate(rows)
    ]
    (target / PROMPTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _download(client: httpx.Client, url: str, sha256: str) -> bytes:
    try:
        content = client.get(url).raise_for_status().content
    except httpx.HTTPError as error:
        raise SystemExit(f"{url} cannot be fetched: {error}. Run it again to go on.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SystemExit(f"{url} is not what was published: sha256 {found}, expected {sha256}.")
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "data")
    parser.add_argument(
        "--base-url", default=BASE_URL, help="of a mirror of the repository's files"
    )
    arguments = parser.parse_args()
    fetch(arguments.folder, arguments.base_url)
