"""The small demo through the SLURM profile, on a real SLURM: GPUs, limits, killed jobs, a killed run.

Where its packages are absent (`make slurm` installs them) or the tests do not run as root, all this is skipped.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from isoslide import status

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARTS = ("Snakefile", "config", "envs", "resources", "scripts", "workflow")
FAST = [sys.executable, str(HERE / "fast_snakemake.py"), "--slurm-init-seconds-before-status-checks", "1"]
GPU_SITE = ["--set-resources", "extract_features:gpu=1", "extract_features:slurm_partition=gpu"]
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A running cluster; one at a time on a machine."""
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started by root")
    if missing := [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name)]:
        pytest.skip(f"no {missing[0]} on this machine: 'make slurm' installs it")
    folder = str(tmp_path_factory.mktemp("slurm"))
    with open(Path(tempfile.gettempdir(), "isoslide-slurm.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        up = subprocess.run([HERE / "cluster.sh", "up", folder], capture_output=True, text=True)
        if "belongs to a cluster already" in up.stderr:
            pytest.skip(up.stderr.strip())
        try:
            assert up.returncode == 0, up.stderr
            yield
        finally:
            subprocess.run([HERE / "cluster.sh", "down", folder], check=True, timeout=120)


@pytest.fixture(scope="session")
def limits(cluster, tmp_path_factory):
    """The run of limits.smk, which waits for SLURM's clock and so goes on beside the demo."""
    folder = tmp_path_factory.mktemp("limits")
    command = [*FAST, "--snakefile", str(HERE / "limits.smk"), "--workflow-profile", str(profile(folder))]
    with open(folder / "log", "w") as log:
        run = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    yield folder, run
    if run.poll() is None:
        run.kill()
        run.wait()


def profile(folder, **site):
    """The profile as it is delivered, with the site's facts, as a user would fill them in."""
    settings = yaml.safe_load((ROOT / "workflow/profiles/slurm/profile.yaml").read_text())
    settings["default-resources"] |= site
    (folder / "profile").mkdir()
    (folder / "profile/profile.yaml").write_text(yaml.safe_dump(settings))
    return folder / "profile"


@pytest.fixture(scope="session")
def demo(cluster, limits, tmp_path_factory):
    """A folder in which the small demo was killed, started again, failed by scancel, and was finished."""
    folder = tmp_path_factory.mktemp("demo") / "iso slide"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    config = yaml.safe_load((ROOT / "tests/e2e/small_demo.yaml").read_text())
    config["tasks"].pop("survival")
    config["training"] |= {"seeds": 1, "steps": 20}
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config | {"heatmaps": []}))
    table = pd.read_csv(ROOT / "config/slides.tsv", sep="\t", dtype=str)
    patients = table.drop_duplicates("patient").groupby("response").head(4)["patient"]
    table[table["patient"].isin(patients)].to_csv(folder / "config/slides.tsv", sep="\t", index=False)
    profile(folder, slurm_partition="cpu")
    kill_the_run(folder)
    runs = {"unlock": run(folder, "--unlock"), "cancelled": run_and_cancel(folder, "extract_features")}
    runs["finished"] = run(folder)
    return folder, runs


def arguments(*more):
    return [*FAST, "--workflow-profile", "profile", *GPU_SITE, *more]


def run(folder, *more):
    return subprocess.run(arguments(*more), cwd=folder, capture_output=True, text=True, timeout=1200)


def jobs():
    """Every job that the cluster knows, in the order of submission; the comment of a job names its rule."""
    listing = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True
    ).stdout
    fields = {
        "id": r"JobId=(\d+)",
        "rule": r"Comment=rule_(\w+?)(?:_wildcards\S*)? ",
        "state": r"JobState=(\w+)",
        "partition": r"Partition=(\w+)",
        "memory": r"MinMemoryNode=(\w+)",
        "limit": r"TimeLimit=([\d:]+)",
        "gpu": r"TresPerJob=(\S+)",
    }
    rows = [
        {name: re.search(f" {pattern}", f" {line}") for name, pattern in fields.items()}
        for line in listing.splitlines()
    ]
    found = [{name: hit[1] if hit else "" for name, hit in row.items()} for row in rows if row["id"]]
    table = pd.DataFrame(found, columns=list(fields))
    return table.sort_values("id", key=lambda ids: ids.astype(int))


def kill_the_run(folder):
    """Start the run and kill its main process while a job is at work in the cluster: the job goes on."""
    main = subprocess.Popen(arguments(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and main.poll() is None:
        found = jobs()
        if len(found[(found["rule"] == "check_slides") & (found["state"] == "RUNNING")]):
            break
        time.sleep(0.5)
    main.send_signal(signal.SIGKILL)
    assert main.wait() == -signal.SIGKILL


def run_and_cancel(folder, rule):
    """Run, and cancel every job of a rule as soon as it is there, all its attempts; return the finished process."""
    with open(folder / "cancelled.log", "w") as log:
        main = subprocess.Popen(arguments(), cwd=folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 6000
        while main.poll() is None and time.monotonic() < deadline:
            found = jobs()
            alive = found[(found["rule"] == rule) & found["state"].isin(["PENDING", "RUNNING"])]
            if len(alive):
                subprocess.run(["scancel", *alive["id"]], check=True)
            time.sleep(0.5)
        main.kill()
    return subprocess.CompletedProcess(main.args, main.wait(), (folder / "cancelled.log").read_text(), "")


def test_cancelled_jobs_end_the_run_and_a_rerun_finishes(demo):
    folder, runs = demo
    assert runs["unlock"].returncode == 0
    assert runs["cancelled"].returncode == 1
    assert "CANCELLED" in runs["cancelled"].stdout
    assert runs["finished"].returncode == 0, runs["finished"].stdout + runs["finished"].stderr
    text = runs["finished"].stdout + runs["finished"].stderr
    counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE)}
    assert not {"make_demo", "check_slides", "segment_tissue", "register_scans", "tile_scans"} & set(counts)
    assert counts["extract_features"] == 1
    assert (folder / "results/report/index.html").exists()
    done = run(folder, "-n")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_every_scan_came_through(demo):
    folder, _ = demo
    sheet = pd.read_csv(folder / "config/slides.tsv", sep="\t", dtype=str)
    table = status.read(folder / "results/status/features/efficientnet_lite0.tsv")
    assert sorted(table["scan"]) == sorted(sheet["scan"])
    assert set(table["status"]) == {"ok"}


def test_jobs_that_need_a_gpu_get_it_and_no_others(demo):
    folder, _ = demo
    found = jobs()
    features = found[found["rule"] == "extract_features"]
    assert set(features["gpu"]) == {"gres:gpu:1"}
    assert set(features["partition"]) == {"gpu"}
    others = found[found["rule"].isin(["check_slides", "segment_tissue", "train_models", "predict_scans"])]
    assert {"check_slides", "segment_tissue", "train_models"} <= set(others["rule"])
    assert set(others["gpu"]) == {""}
    assert set(others["partition"]) == {"cpu"}
    log = (folder / "results/logs/extract_features/efficientnet_lite0/b0.log").read_text()
    assert re.search(r"on \S+, job \d+, partition gpu, GPUs [01] ", log)


def test_more_memory_and_more_time_at_the_second_attempt(limits):
    folder, main = limits
    assert main.wait(timeout=600) == 0, (folder / "log").read_text()
    assert (folder / "memory.txt").read_text() == "1000\n"
    assert (folder / "time.txt").read_text() == "2\n"
    found = jobs().groupby("rule")
    assert found["memory"].agg(list)["memory"] == ["500M", "1000M"]
    assert found["state"].agg(list)["memory"] == ["FAILED", "COMPLETED"]
    assert found["limit"].agg(list)["time"] == ["00:01:00", "00:02:00"]
    assert found["state"].agg(list)["time"] == ["TIMEOUT", "COMPLETED"]


def test_a_job_sees_the_gpu_it_was_given(limits):
    folder, main = limits
    assert main.wait(timeout=600) == 0
    assert (folder / "gpu.txt").read_text().strip() in ("gpu1 0", "gpu1 1")
    assert (folder / "no_gpu.txt").read_text().strip() == "cpu1 none"
