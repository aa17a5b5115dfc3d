"""A newcomer finds every file from the README, no link leads nowhere, and the formats say every column."""

import re
from pathlib import Path

import pytest

import predict_scans
from isoslide import applying, evaluation, models, splits, status, training

ROOT = Path(__file__).resolve().parents[2]


def test_the_file_map_names_every_file():
    text = (ROOT / "README.md").read_text().partition("## Where things are")[2]
    named = set(re.findall(r"^\| `([\w./-]+)` \|", text, flags=re.MULTILINE))
    files = [*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/isoslide/*.py"), *ROOT.glob("workflow/rules/*.smk")]
    files += [*ROOT.glob("envs/*.yaml"), *ROOT.glob("docs/*.md")]
    wanted = {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"}
    assert wanted - named == set()
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", ["README.md", "config/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("http")]
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target.partition("#")[0]).exists()]
    assert missing == []


def test_the_formats_name_every_column():
    text = re.sub(r"```.*?```", "", (ROOT / "docs/formats.md").read_text(), flags=re.DOTALL)
    named = {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", code)}
    tables = (status.COLUMNS, splits.COLUMNS, models.COLUMNS, predict_scans.COLUMNS, training.CURVE)
    wanted = {
        name for columns in (*tables, evaluation.METRIC_COLUMNS, applying.COLUMNS, applying.AFTER) for name in columns
    }
    assert wanted - named == set()
