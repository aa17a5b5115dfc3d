"""The benchmark of the plan: the counts of its sheet, and that no command of a rule is left."""

import re

import pandas as pd

import benchmark_plan


def test_sheet_has_as_many_scans_and_patients_as_asked_for(tmp_path):
    table = benchmark_plan.write_sheet(tmp_path, 100, 30)
    assert (len(table), table["scan"].nunique(), table["patient"].nunique()) == (100, 100, 30)
    assert (table.groupby("specimen")["scanner"].nunique() == table.groupby("specimen").size()).all()
    assert (table.groupby("specimen").size() <= 4).all()
    assert all((tmp_path / path).exists() for path in table["path"])


def test_every_command_is_replaced(tmp_path):
    benchmark_plan.copy_workflow(tmp_path / "copy")
    for path in (tmp_path / "copy/workflow/rules").glob("*.smk"):
        assert "python {input.script" not in path.read_text()
        assert len(re.findall("^    shell:", path.read_text(), re.MULTILINE)) == path.read_text().count(
            benchmark_plan.STUB
        )


def test_files_of_scans(tmp_path):
    """By hand: three scans of two specimens, two views, two encoders."""
    for name in ("tiles/a", "tiles/b", "features/uni", "features/uni2_h"):
        path = tmp_path / f"results/status/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    sheet = pd.DataFrame({"specimen": ["1", "1", "2"]})
    assert benchmark_plan.files_of_scans(tmp_path, sheet) == 3 * (2 + 2 + 2) + 2
