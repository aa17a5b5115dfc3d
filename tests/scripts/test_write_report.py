import fake_results
import pytest

import write_report


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fake_results.write(folder, patients=20, arms=("paired", "robust"), tasks=("survival",))
    fake_results.evaluate(folder, tasks=("survival",))
    return folder


def test_page_figures_and_their_data_are_written(root):
    write_report.main(fake_results.report_arguments(root))
    page = (root / "out" / "index.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "SIMULATED" in page
    svgs = sorted(path.stem for path in (root / "out" / "figures").glob("*.svg"))
    tables = sorted(path.stem for path in (root / "out" / "figures").glob("*.tsv"))
    assert svgs == tables == sorted(path.stem for path in (root / "out" / "figures").glob("*.pdf"))
    assert all(path.read_bytes().startswith(b"%PDF") for path in (root / "out" / "figures").glob("*.pdf"))
    assert {f"survival-{fake_results.ENCODER}-embedding-map-robust-scanner"} <= set(svgs)
    assert {"forest-inconsistency", "forest-accuracy", "registration"} <= set(svgs)


def test_a_missing_table_leaves_no_page(root):
    arguments = [
        word.replace("/robust/models.tsv", "/absent/models.tsv") for word in fake_results.report_arguments(root)
    ]
    (root / "out" / "index.html").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        write_report.main(arguments)
    assert not (root / "out" / "index.html").exists()


def test_a_stage_with_several_tables_keeps_them_apart(root):
    folder = root / "results" / "status"
    texts = [f"checks={folder}/checks.tsv", f"features={folder}/tissue.tsv", f"features={folder}/checks.tsv"]
    assert list(write_report.read_stages(texts)) == ["checks", "features (tissue)", "features (checks)"]


def test_ids_on_a_map_stay_text(tmp_path):
    """Complaint G-G1, in the data beside the figure."""
    path = tmp_path / "map.tsv"
    path.write_text("scan\tspecimen\tpatient\tscanner\tx\ty\tgrade\n0012\t012\t01\t1\t0.5\t1\t\n")
    table = write_report.read_map(path)
    assert table.iloc[0].tolist() == ["0012", "012", "01", "1", 0.5, 1.0, ""]
