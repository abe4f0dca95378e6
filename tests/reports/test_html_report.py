"""The page as a whole: true to selection.json, safe, self-contained, complete or not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError, TableError
from expo_ray.reports import write_report
from expo_ray.tables import REWARDS_SCHEMA
from tests.reports.page import Page
from tests.reports.run_directory import ALPHAS, RunDirectory

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
ESCAPE = '"><svg onload=alert(2)></svg>{{ 7 * 7 }}$x^2$\x00\x1b[31m'


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("full") / "run").write_all()
    write_report(run)
    return run


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> Page:
    return Page(full_run / "report.html")


def test_every_number_of_the_candidates_is_the_one_in_selection_json(
    full_run: Path, full_page: Page
) -> None:
    selection = json.loads((full_run / "selection.json").read_text())
    first = next(i for i, row in enumerate(full_page.rows) if row)
    printed = full_page.rows[first : first + len(ALPHAS)]
    for candidate, row in zip(selection["candidates"], printed, strict=True):
        columns = ["mean_reward", "gain", "gain_ci_low", "gain_ci_high"]
        columns = columns[:1] if candidate["alpha"] == 0 else columns
        assert row == [candidate[key] for key in (*columns, "mean_tokens", "length_ratio")]


def test_every_number_of_the_load_tests_is_the_one_in_summary_json(
    full_run: Path, full_page: Page
) -> None:
    keys = ("request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms",
            "median_tpot_ms", "p99_tpot_ms", "median_e2el_ms", "p99_e2el_ms")  # fmt: skip
    expected = [
        [point[key] for key in keys]
        for label in ("aligned", "alpha-3")
        for point in json.loads((full_run / f"loadtest/{label}/summary.json").read_text())["points"]
    ]
    assert [row for row in full_page.rows if len(row) == len(keys)] == expected


def test_the_verdict_comes_first_with_its_surety(full_run: Path, full_page: Page) -> None:
    heldout = json.loads((full_run / "selection.json").read_text())["heldout"]
    sentence = (
        f"Extrapolating to alpha 3 raised the mean reward by {heldout['gain']:.3f} (95% interval "
        f"{heldout['ci_low']:.3f} to {heldout['ci_high']:.3f}, p < 0.001) over the aligned model "
        "on 100 held-out prompts."
    )
    assert sentence in full_page.text
    assert full_page.text.index(sentence) < full_page.text.index("The candidates")


def test_needs_nothing_but_itself(full_page: Page) -> None:
    assert not full_page.tags.keys() & {"script", "link", "iframe", "object", "embed", "img"}
    for tag, name, value in full_page.attributes:
        if name in {"href", "xlink:href", "src", "action"}:
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        assert not (name != "xmlns" and not name.startswith("xmlns:") and "://" in value), value
    assert not re.findall(r"@import|url\((?!#)", full_page.html)
    policy = [v for tag, name, v in full_page.attributes if tag == "meta" and "default-src" in v]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_is_well_formed_and_described(full_page: Page) -> None:
    assert full_page.unclosed == []
    assert [i for i, count in full_page.ids.items() if count > 1] == []
    labels = [v for tag, name, v in full_page.attributes if (tag, name) == ("figure", "aria-label")]
    assert len(labels) == full_page.tags["figure"] == 5
    assert labels[0].startswith("Line chart of the gain in mean reward over the aligned model")
    assert all(label.endswith(".") and len(label) > 40 for label in labels)


def test_figures_are_files_too(full_run: Path) -> None:
    files = sorted(path.name for path in (full_run / "figures").iterdir())
    names = ["delta-by-layer", "guard-reward-models", "length-against-alpha"]
    names += ["reward-against-alpha", "throughput"]
    assert files == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for name in names:
        svg = ET.parse(full_run / "figures" / f"{name}.svg").getroot()
        assert svg.tag.endswith("svg")
        assert "var(--" not in ET.tostring(svg, encoding="unicode")


def test_the_same_run_gives_the_same_bytes(full_run: Path) -> None:
    paths = [full_run / "report.html", *sorted((full_run / "figures").iterdir())]
    before = [path.read_bytes() for path in paths]
    write_report(full_run)
    assert [path.read_bytes() for path in paths] == before


def test_nothing_that_a_model_wrote_becomes_markup(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", num_prompts=20)
    odd = [p for p in run.prompt_ids if run.splits[p] == "heldout"]
    run.write_responses(responses={p: f"{EVIL} {ESCAPE} {p}" for p in odd})
    run.write_rewards("0-reward-model", noise=1.0, bend=1.0)
    run.write_rewards("1-<b>guard$_x$", noise=1.0, bend=1.0)
    run.write_loadtests(3.0, rejected=False)
    run.write_records(3.0)
    guard = {"name": EVIL, "alpha": 5.0, "value": 1.0, "threshold": 0.5, "fired": True}
    run.write_selection(
        verdict="extrapolate", best_alpha=3.0, reason=EVIL, guards=[{**guard, "reason": ESCAPE}]
    )
    (run.path / "recipe.yaml").write_text(f"name: '{EVIL}'\n")
    resolved = json.loads((run.path / "resolved.json").read_text())
    resolved["initial"]["uri"] = resolved["recipe"]["name"] = EVIL
    (run.path / "resolved.json").write_text(json.dumps(resolved))
    page = Page(write_report(run.path))
    assert not page.tags.keys() & {"script", "img"}
    assert page.tags["svg"] == page.tags["figure"]
    assert page.tags["b"] == page.html.count('<div class="prompt"><b>')
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(EVIL) >= 5 + 3
    assert "{{ 7 * 7 }}" in page.text and "guard$_x$" in page.text
    assert "\N{SYMBOL FOR NULL}\N{SYMBOL FOR ESCAPE}[31m" in page.text
    assert not set("\x00\x1b") & set(page.html)


def test_selection_alone_is_enough(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_selection(verdict="extrapolate", best_alpha=3.0)
    page = Page(write_report(run.path))
    assert "Extrapolate to alpha 3" in page.text
    for absent in ("Was the choice really good", "side by side", "costs to serve", "laboratory"):
        assert absent not in page.text
    assert page.tags["figure"] == 2
    assert "expo-ray extrapolate INITIAL ALIGNED OUTPUT --alpha 3" in page.text


@pytest.mark.parametrize(
    "part",
    ["responses", "rewards", "rewards/truth", "rewards/1-guard-reward-model", "loadtest",
     "loadtest/aligned", "loadtest/compared.json", "checkpoints", "resolved.json", "lab.json",
     "timings.json", "recipe.yaml"],
)  # fmt: skip
def test_any_part_may_be_missing(full_run: Path, tmp_path: Path, part: str) -> None:
    target = tmp_path / "run"
    for file in full_run.rglob("*"):
        relative = file.relative_to(full_run)
        if file.is_file() and not relative.as_posix().startswith((part, "report", "figures")):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            (target / relative).hardlink_to(file)
    assert Page(write_report(target)).unclosed == []


@pytest.mark.parametrize("name", ["figures", "checkpoints", "recipe.yaml", "report.html"])
def test_links_that_leave_the_run_are_refused(full_run: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(full_run, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "secret").write_text("key")
    if (copy / name).is_dir():
        shutil.rmtree(copy / name)
    else:
        (copy / name).unlink(missing_ok=True)
    is_folder = "." not in name
    (copy / name).symlink_to(tmp_path / ("elsewhere" if is_folder else "secret"))
    with pytest.raises(ConfigError, match="leaves the folder") as caught:
        write_report(copy)
    assert caught.value.where == str(copy / name)
    assert not any((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "secret").read_text() == "key"
    # A run directory may be reached through a link, and hold links to its own files.
    (copy / name).unlink()
    (tmp_path / "link").symlink_to(copy)
    (copy / "recipe.yaml").write_text("name: a")
    (copy / "report.html").unlink(missing_ok=True)
    (copy / "report.html").symlink_to("recipe.yaml")
    write_report(tmp_path / "link")
    assert (copy / "recipe.yaml").read_text() == "name: a"
    assert not (copy / "report.html").is_symlink()


def test_without_a_selection_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no selection") as caught:
        write_report(tmp_path)
    assert caught.value.exit_code == 2
    assert caught.value.where == str(tmp_path / "selection.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("selection.json", ConfigError),
        ("resolved.json", ConfigError),
        ("rewards/0-rm/alpha-0.parquet", TableError),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, error: type[Exception]) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_selection(verdict="extrapolate", best_alpha=3.0)
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text("[1, 2")
    with pytest.raises(error, match=re.escape(str(run.path / name))):
        write_report(run.path)
    assert not (run.path / "report.html").exists()


def test_what_could_not_be_measured_is_not_available(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    selection = run.write_selection(verdict="keep-aligned", best_alpha=3.0)
    measures = ("mean_reward", "ci_low", "ci_high", "gain", "gain_ci_low", "gain_ci_high",
                "mean_tokens", "length_ratio", "truncation_rate")  # fmt: skip
    for candidate in selection["candidates"][1:]:
        candidate.update({**dict.fromkeys(measures), "num_pairs": 0, "num_errors": 100})
    nothing = {"alpha": 3.0, "gain": None, "ci_low": None, "ci_high": None, "num_pairs": 0}
    run.write_selection(
        verdict="keep-aligned",
        best_alpha=3.0,
        candidates=selection["candidates"],
        heldout={**nothing, "p_value": None},
        guards=[{**selection["guards"][0], "value": None, "fired": True}],
    )
    text = Page(write_report(run.path)).text
    assert "No candidate earned a comparison on held-out prompts." in text
    assert "100 at alpha 3 (100%)" in text
    assert "not measured" in text and not re.search(r"\b(None|nan)\b", text)


def test_keep_aligned_says_what_was_rejected(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", peak=2.0, height=0.01, num_prompts=60)
    text = Page(write_report(run.write_all(verdict="keep-aligned", best_alpha=2.0))).text
    assert text.index("Keep the aligned model") < text.index("The best candidate, alpha 2, changed")
    assert "which is not a proven gain" in text
    assert "The tested candidate was rejected" in text
    assert "expo-ray serve /models/aligned" in text
    assert "--alpha 2" not in text
    assert "Only 30 held-out prompts" in text


def test_a_choice_at_the_edge_of_the_grid_is_flagged(tmp_path: Path) -> None:
    edge = "the edge of the grid"
    for peak, expected in ((12.0, True), (2.0, False)):
        run = RunDirectory(tmp_path / str(peak), peak=peak)
        run.write_selection(verdict="extrapolate", best_alpha=peak)
        assert (edge in Page(write_report(run.path)).text) == expected


def test_what_the_reward_model_does_not_see_is_said(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", num_prompts=40, peak=12.0)
    run.write_rewards("0-reward-model", noise=1.0, bend=1.0)
    run.write_selection(
        verdict="extrapolate",
        best_alpha=12.0,
        measurement_spread=0.00312,
        warnings=["the reward is the log-ratio of the pair itself"],
    )
    file = run.path / "rewards/0-reward-model/alpha-3.parquet"
    rows = pq.read_table(file, schema=REWARDS_SCHEMA).to_pylist()
    rows[0]["truncated"] = rows[1]["truncated"] = True
    rows[1]["reward"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=REWARDS_SCHEMA), file)
    text = Page(write_report(run.path)).text
    assert "2 at alpha 3 (1 refused)" in text
    assert "Batching alone moves a score by up to 0.0031 (self-test" in text
    assert "The reward is the log-ratio of the pair itself." in text
    assert "the edge of the grid" in text, "another warning does not silence this one"


def test_reads_what_the_selection_room_writes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", num_prompts=80)
    run.write_responses()
    run.write_rewards("0-reward-model", noise=1.0, bend=1.0)
    run.write_rewards("1-guard", noise=1.0, bend=0.6)
    selection = run.choose()
    page = Page(write_report(run.path))
    assert selection["verdict"] == "extrapolate"
    assert f"Extrapolate to alpha {selection['best_alpha']:g}" in page.text
    stopped = [c for c in selection["candidates"] if c["stopped_by"]]
    assert stopped and all(name in page.text for c in stopped for name in c["stopped_by"])


def test_the_room_is_light_and_needs_no_ray() -> None:
    code = (
        "import sys, expo_ray.reports as r\n"
        "assert not {'matplotlib', 'pyarrow', 'numpy', 'jinja2'} & set(sys.modules)\n"
        "r.write_report, r.render_model_card, r.summary_rows, r.verdict_sentence\n"
        "assert not {'ray', 'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
