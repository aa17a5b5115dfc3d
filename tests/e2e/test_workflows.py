"""Whole workflows, as a user runs them."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from isoslide import status

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config", "envs", "resources", "scripts", "workflow")
pytestmark = pytest.mark.e2e


def snakemake(folder, *arguments, **options):
    command = ["snakemake", "--cores", "2", "--workflow-profile", "workflow/profiles/workstation", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, **options)


def succeed(folder, *arguments):
    done = snakemake(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(folder, *arguments):
    """{rule: jobs} of a dry run; empty when there is nothing to be done."""
    text = succeed(folder, *arguments, "-n", "--quiet", "rules")
    if "Nothing to be done" in text:
        return {}
    return {
        name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", text.rsplit("Job stats:", 1)[1], flags=re.MULTILINE)
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A copy of the repository, in a folder with a blank in its name, in which the small demo has run."""
    folder = tmp_path_factory.mktemp("e2e") / "iso slide"
    folder.mkdir()
    for part in PARTS:
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / part)
    shutil.copy(ROOT / "tests/e2e/small_demo.yaml", folder / "config/config.yaml")
    table = pd.read_csv(ROOT / "config/slides.tsv", sep="\t", dtype=str)
    patients = table.drop_duplicates("patient").groupby("response").head(10)["patient"]
    table[table["patient"].isin(patients)].to_csv(folder / "config/slides.tsv", sep="\t", index=False)
    start_and_kill(folder)
    succeed(folder)
    return folder


def start_and_kill(folder):
    """Start the run, kill it and all its jobs in the middle of the slide stages, and unlock the folder."""
    command = ["snakemake", "--cores", "2", "--workflow-profile", "workflow/profiles/workstation", "tissue"]
    run = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("results/demo/slides/*.tif"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert run.returncode == -signal.SIGKILL
    refused = snakemake(folder, "tissue")  # the message names the one command
    assert refused.returncode == 1
    assert "It can be removed with the --unlock argument" in " ".join(refused.stderr.split())
    succeed(folder, "--unlock")


def test_every_scan_comes_through_every_stage(demo):
    n_scans = len(pd.read_csv(demo / "config/slides.tsv", sep="\t"))
    for stage in ("checks", "tissue", "registrations", "tiles/224px_0.5um", "features/efficientnet_lite0"):
        table = status.read(demo / f"results/status/{stage}.tsv")
        assert len(table) == n_scans
        assert set(table["status"]) == {"ok"}, stage


def test_scans_are_registered_to_the_truth(demo):
    """Registrations against the geometry that the simulated scanners were given, in µm at four corners."""
    truth = pd.read_csv(demo / "results/demo/manifest.tsv", sep="\t").set_index("scan")
    columns = [["a00", "a01", "a02"], ["a10", "a11", "a12"]]
    errors = []
    for path in sorted(demo.glob("results/registrations/*.json")):
        record = pd.read_json(path, typ="series")
        to_reference = matrix(truth.loc[record["reference"]], columns)
        for scan, entry in record["scans"].items():
            found = np.vstack([entry["affine"], [0, 0, 1]])
            expected = matrix(truth.loc[scan], columns) @ np.linalg.inv(to_reference)
            corners = np.array([[200, 200, 1], [800, 200, 1], [200, 800, 1], [800, 800, 1]]).T
            errors.append(np.abs((found - expected) @ corners).max())
    assert len(errors) >= 80
    assert max(errors) < 0.5


def matrix(row, columns):
    return np.vstack([row[columns[0]], row[columns[1]], [0, 0, 1]]).astype(float)


def test_results_are_complete_and_finite(demo):
    models = status.read(demo / "results/models/response/efficientnet_lite0/robust/models.tsv")
    assert len(models) == 4  # two folds, two seeds
    assert all((demo / path).exists() for path in models["path"])
    scores = pd.read_csv(demo / "results/predictions/response/efficientnet_lite0/robust.tsv", sep="\t")
    assert set(scores["role"]) == {"test", "tune"}
    assert scores["p"].between(0, 1).all()
    scores = scores[scores["role"] == "test"]
    sheet = pd.read_csv(demo / "config/slides.tsv", sep="\t")
    assert set(scores["scan"]) == set(sheet["scan"])  # every scan is tested in one fold
    assert (scores.groupby("scan").size() == 2).all()
    metrics = pd.read_csv(demo / "results/evaluations/survival/efficientnet_lite0/metrics.tsv", sep="\t")
    assert {"c_index", "inconsistency", "rmse", "agreement", "spread"} <= set(metrics["metric"])
    page = (demo / "results/report/index.html").read_text()
    assert "simulated" in page
    assert "not a pathology model" in page
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", page)


def test_heatmaps_say_what_the_predictions_say(demo):
    succeed(demo, "heatmaps")
    for task, arm in itertools.product(("response", "survival"), ("paired", "robust")):
        folder = demo / f"results/heatmaps/{task}/efficientnet_lite0/{arm}"
        table = status.read(folder / "status.tsv").set_index("scan")
        assert set(table["status"]) == {"ok"}
        predictions = pd.read_csv(demo / f"results/predictions/{task}/efficientnet_lite0/{arm}.tsv", sep="\t")
        tested = predictions[predictions["role"] == "test"].groupby("scan")[["p", "logit"]].mean()
        for scan in ("P01-1_A", "P01-1_C"):
            assert float(table.loc[scan, "p"]) == pytest.approx(tested.loc[scan, "p"], abs=1e-5)
            tiles = pd.read_csv(folder / f"tiles/{scan}.tsv", sep="\t")
            assert tiles["contribution"].sum() == pytest.approx(tested.loc[scan, "logit"], abs=1e-4)
            for name in (f"{scan}.png", f"gallery/{scan}.png", f"geojson/{scan}.geojson"):
                assert (folder / name).stat().st_size > 1000
    pairs = status.read(demo / "results/scanner_pairs/response/efficientnet_lite0/status.tsv")
    assert pairs[["scan", "other", "status"]].to_numpy().tolist() == [["P01-1_A", "P01-1_C", "ok"]]
    viewers = status.read(demo / "results/viewer/status.tsv")
    assert viewers["status"].tolist() == ["ok", "ok"]
    page = (demo / "results/viewer/P01-1_A.html").read_text()
    key = viewers.set_index("scan").loc["P01-1_A", "key"]
    assert f'"folder": "slides/P01-1_A/{key}"' in page
    assert (demo / f"results/viewer/slides/P01-1_A/{key}/0/0_0.jpg").exists()
    assert "../viewer/P01-1_A.html" in (demo / "results/report/index.html").read_text()


def test_stages_run_by_name_and_nothing_is_left_to_do(demo):
    succeed(demo, "heatmaps", "exports")
    for stage in ("checks", "tissue", "registrations", "tiles", "features", "splits", "models", "predictions"):
        assert planned(demo, stage) == {}
    for stage in ("evaluations", "heatmaps", "exports", "report", "all"):
        assert planned(demo, stage) == {}


def test_models_score_two_copies_of_a_real_slide(demo, shared):
    """Made from one slide, the cohort is far from it; its copy was compressed anew. docs/using.md has the numbers."""
    succeed(demo, "exports")
    folder = demo / "new slides"
    folder.mkdir()
    files = {"svs": "CMU-1-Small-Region.svs", "dicom": "CMU-1-Small-Region.dicom"}
    lines = [f"{name}\t{shared / 'data/slides' / file}\t{name}" for name, file in files.items()]
    lines.append("broken\tbroken.svs\tsvs")
    (folder / "broken.svs").write_bytes(b"no slide")
    (folder / "slides.tsv").write_text("\n".join(["scan\tpath\tscanner", *lines]) + "\n")
    config = (demo / "config/predict.yaml").read_text().replace("  # survival:", "  survival:")
    (folder / "predict.yaml").write_text(config)
    arguments = ["apply", "--directory", str(folder), "--configfile", str(folder / "predict.yaml")]
    succeed(demo, *arguments)
    for task in ("response", "survival"):
        table = pd.read_csv(folder / f"results/applied/{task}.tsv", sep="\t").set_index("scan")
        assert table["status"].to_dict() == {"broken": "unreadable", "dicom": "ok", "svs": "ok"}
        assert np.isnan(table.loc["broken", "p"])
        good = table.loc[["svs", "dicom"]]
        assert good["p"].between(0, 1).all()
        assert set(good["out_of_range"]) == {"yes"}
        assert good["range_reasons"].str.contains("did not train").all()
        assert good["range_reasons"].str.contains("from the nearest training scan").all()
        assert abs(good.loc["svs", "p"] - good.loc["dicom", "p"]) < 0.32
    both = [read_features(folder / f"results/features/efficientnet_lite0/{name}.h5") for name in files]
    assert both[0].index.tolist() == both[1].index.tolist()  # the same tiles
    assert "Nothing to be done" in succeed(demo, *arguments, "-n")


def test_a_touch_runs_nothing_and_an_edit_runs_its_stage_only(demo):
    for path in [
        *demo.glob("scripts/**/*.py"),
        *demo.glob("resources/*"),
        demo / "config/slides.tsv",
        demo / "Snakefile",
    ]:
        path.touch()
    assert planned(demo) == {}
    module = demo / "scripts/isoslide/evaluation.py"
    text = module.read_text()
    module.write_text(text + "\n# an edit\n")
    assert planned(demo) == {"evaluate_predictions": 2, "write_report": 1, "all": 1, "total": 4}
    module.write_text(text)
    assert planned(demo) == {}


def test_a_changed_parameter_and_a_new_arm_run_what_depends_on_them(demo):
    over = demo / "over.yaml"
    files = ["--configfile", "config/config.yaml", "over.yaml"]
    over.write_text("evaluation: { resamples: 200 }\n")
    evaluations = {"evaluate_predictions": 2, "evaluate_features": 1, "evaluate_metadata": 2, "embed_tiles": 4}
    assert planned(demo, *files) == evaluations | {"write_report": 1, "all": 1, "total": 11}
    over.write_text("arms: { embedding: { sampler: paired, embedding_weight: 1 } }\n")
    plan = planned(demo, *files)
    assert plan == {
        "train_models": 2,
        "predict_scans": 2,
        "evaluate_predictions": 2,
        "embed_tiles": 2,
        "write_report": 1,
        "all": 1,
        "total": 10,
    }


def test_a_rerun_of_an_early_stage_keeps_what_stands(demo):
    """Features carry content keys: running their jobs again opens each file and writes none."""
    files = sorted(demo.glob("results/features/efficientnet_lite0/*.h5"))
    times = [path.stat().st_mtime_ns for path in files]
    succeed(demo, "features", "-R", "extract_features", "--until", "extract_features")
    assert [path.stat().st_mtime_ns for path in files] == times


def test_one_scan_by_hand_from_the_printed_command(demo):
    text = succeed(demo, "-n", "-p", "-R", "segment_tissue", "--until", "segment_tissue")
    command, checks = re.search(r"(python scripts/segment_tissue\.py +--checks (\S+) .*?) &>", text).groups()
    scan = status.read(demo / checks)["scan"].iloc[0]
    subprocess.run(["bash", "-c", f"{command} --scans {scan} --output one.tsv"], cwd=demo, check=True)
    assert status.read(demo / "one.tsv")["scan"].tolist() == [scan]


def test_snakemakes_own_report(demo):
    """The archive holds the page, every figure of it and the tables, each with a caption and in its category."""
    succeed(demo, "--report", "report.zip")
    with zipfile.ZipFile(demo / "report.zip") as archive:
        held = {Path(name).name for name in archive.namelist()}
        text = archive.read("report/report.html").decode()
    figures = {path.name for path in (demo / "results/report/figures").glob("*.svg")}
    assert len(figures) > 40
    assert {"index.html", "metrics.tsv", "comparisons.tsv", "robust.tsv"} | figures <= held
    for category in ("Report", "Figures", "Tables"):
        assert f'"{category}"' in text
    for caption in (
        "A figure of the page",
        "The page that answers the question",
        "Every metric of task",
        "How much of",
    ):
        assert caption in text


def test_real_slides_in_three_formats(tmp_path, shared):
    (tmp_path / "shared").symlink_to(shared)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    command = [
        "snakemake",
        "--cores",
        "2",
        "features",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(tmp_path),
    ]
    command += ["--configfile", str(ROOT / "tests/e2e/real_slides.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = status.read(tmp_path / "results/status/features/efficientnet_lite0.tsv").set_index("scan")
    assert set(table["status"]) == {"ok"}
    scans = {scan: read_features(tmp_path / path) for scan, path in table["path"].items()}
    svs, dicom, hamamatsu, olympus = (scans[name] for name in ("CMU-1.svs", "CMU-1.dicom", *OS2))
    assert svs.index.tolist() == dicom.index.tolist()
    assert len(svs) >= 40
    assert cosine(svs, dicom).mean() > 0.93  # the same pixels, compressed once more
    record = pd.read_json(tmp_path / "results/registrations/CMU-1.json", typ="series")
    affine = np.array(record["scans"]["CMU-1.dicom"]["affine"])
    corners = np.array([[100, 100, 1], [900, 100, 1], [100, 1300, 1], [900, 1300, 1]]).T
    assert (
        np.abs(affine @ corners - corners[:2]).max() < 0.6
    )  # µm; the copy's smaller levels lie 0.3 µm off its level 0
    both = hamamatsu.index.intersection(olympus.index)
    assert len(both) >= 9  # one field of 500 µm on two scanners, a few µm apart
    assert cosine(hamamatsu.loc[both], olympus.loc[both]).mean() > 0.6


OS2 = ("OS-2.hamamatsu", "OS-2.olympus")


def read_features(path):
    with h5py.File(path) as file:
        return pd.DataFrame(file["features"][()].astype(float), index=file["tile_ids"][()])


def cosine(a, b):
    a, b = a.to_numpy(), b.to_numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
