"""The page in a real browser: it opens offline, shows its verdict, runs nothing."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from expo_ray.reports import write_report
from tests.reports.run_directory import RunDirectory
from tests.reports.study_file import study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--hide-scrollbars",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("browser") / "run", num_prompts=60)
    run.write_all()
    run.write_responses(
        responses=dict.fromkeys(run.prompt_ids, "<script>document.title=1</script>")
    )
    return write_report(run.path)


def browse(page: Path, profile: Path, *flags: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return finished.stdout


def test_opens_and_shows_the_verdict(report: Path, tmp_path: Path) -> None:
    dom = browse(report, tmp_path / "profile", "--dump-dom")
    assert "<title>quickstart: Extrapolate to alpha 3</title>" in dom
    assert "<h1>Extrapolate to alpha 3</h1>" in dom
    assert dom.count("&lt;script&gt;document.title=1&lt;/script&gt;") == 5
    assert dom.count("<svg") == 5 == dom.count("</svg>")


@pytest.mark.parametrize("width", [1200, 420])
def test_fits_the_screen(report: Path, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    browse(
        report, tmp_path / "profile", f"--screenshot={picture}", f"--window-size={width},3000"
    )  # fmt: skip
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 3000)
    assert len(content) > 50_000, "an empty page compresses to almost nothing"


def test_nothing_but_tables_and_figures_scrolls_sideways(report: Path, tmp_path: Path) -> None:
    # The browser itself measures: a copy of the page reports its width in its title.
    probe = tmp_path / "probe.html"
    html = report.read_text(encoding="utf-8")
    policy = html.split('<meta http-equiv="')[1].split(">")[0]
    script = "<script>document.title='wide='+document.documentElement.scrollWidth</script></body>"
    probe.write_text(
        html.replace(f'<meta http-equiv="{policy}>', "").replace("</body>", script), "utf-8"
    )
    dom = browse(probe, tmp_path / "profile", "--window-size=500,1000", "--dump-dom")
    assert "<title>wide=500</title>" in dom


def test_prints(report: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    browse(report, tmp_path / "profile", f"--print-to-pdf={target}")
    content = target.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 3 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 12


def test_a_controlled_experiment_prints_on_one_page(tmp_path: Path) -> None:
    # The most settings that one has, and both intervals.
    found = study(num_arms=6, others=12, name="two SFT, two bases")
    found |= dict.fromkeys(("shows", "limits"), 30 * "words ")
    (tmp_path / "study.json").write_text(json.dumps(found))
    target = tmp_path / "page.pdf"
    page = write_report(tmp_path)
    browse(page, tmp_path / "profile", f"--print-to-pdf={target}", "--no-pdf-header-footer")
    assert len(re.findall(rb"/Type\s*/Page[^s]", target.read_bytes())) == 1
