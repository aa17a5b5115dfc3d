"""The README finds every file for a newcomer: its map has one line per file."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_file_map_names_every_file():
    text = (ROOT / "README.md").read_text().partition("## Where things are")[2]
    named = set(re.findall(r"^\| `([\w./-]+)` \|", text, flags=re.MULTILINE))
    files = [*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/isoslide/*.py"), *ROOT.glob("workflow/rules/*.smk")]
    files += [*ROOT.glob("envs/*.yaml"), *ROOT.glob("docs/*.md")]
    wanted = {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"}
    assert wanted - named == set()
    assert {name for name in named if not (ROOT / name).exists()} == set()
