"""What goes wrong on clusters, played by fake commands: failing status queries and submissions, sites' own flags."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROFILE = (HERE.parents[1] / "workflow/profiles/slurm/profile.yaml").read_text()
SNAKEFILE = """
rule all:
    input: expand("{name}.txt", name=config["jobs"].split("+"))
rule extract_features:
    output: "{name}.txt"
    resources:
        mem_mb=lambda wc, attempt: 1000 * attempt,
        gpu=1
    shell: "touch {output}"
"""


@pytest.fixture
def cluster(tmp_path):
    """Run jobs through the delivered profile, or an edit of it; `plan` says what fails. Returns the ended process."""
    folder = tmp_path / "bin"
    (tmp_path / "profile").mkdir()
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel", "sacctmgr", "sshare"):
        (folder / name).symlink_to(HERE / "fake_slurm.py")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)

    def run(*arguments, jobs="a", profile=PROFILE, environment=None, **plan):
        (folder / "plan.json").write_text(json.dumps(plan))
        (tmp_path / "profile/profile.yaml").write_text(profile)
        command = [sys.executable, str(HERE / "fast_snakemake.py"), "--workflow-profile", "profile"]
        command += ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            [*command, "--config", f"jobs={jobs}", *arguments],
            cwd=tmp_path,
            env={**os.environ, **(environment or {}), "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    run.folder = tmp_path
    return run


def calls(cluster, command):
    path = cluster.folder / "bin" / f"{command}.calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def submitted(cluster):
    return [" ".join(call["arguments"]) for call in calls(cluster, "sbatch")]


def test_jobs_are_submitted_with_gpu_memory_and_time(cluster):
    """G-K1, G-K3: one GPU, and no task geometry that nobody asked for."""
    done = cluster()
    assert done.returncode == 0, done.stderr
    (line,) = submitted(cluster)
    assert "--gpus=1" in line
    assert "--mem 1000" in line
    assert "-t 60" in line
    assert "--ntasks" not in line


def site_block(*left_out):
    """The profile with its commented facts of a site made true, as its comment says."""
    head, _, block = PROFILE.partition("# Facts of your site:")
    lines = [line.removeprefix("#") for line in block.splitlines()[1:]]
    return head + "\n".join(line for line in lines if not re.match(rf" +({'|'.join(left_out) or '-'}):", line)) + "\n"


def test_facts_of_a_site_arrive_untouched(cluster):
    """G-K2, G-K4: account, partition and constraint stand in the sbatch line as they were written."""
    done = cluster(profile=site_block("gpu", "gres", "slurm_account"))
    assert done.returncode == 0, done.stderr
    (call,) = calls(cluster, "sbatch")
    arguments = call["arguments"]
    assert arguments[arguments.index("-C") + 1] == "a100|h100"
    assert arguments[arguments.index("-p") + 1] == "gpu"
    assert "--gpus=1" in arguments
    defaults = [base64.b64decode(word[8:] + "==") for word in arguments[-1].split() if word.startswith("base64//")]
    assert b"tmpdir=/scratch" in defaults


def test_gres_instead_of_gpus(cluster):
    done = cluster(profile=site_block("slurm_account"))
    assert done.returncode == 0, done.stderr
    (line,) = submitted(cluster)
    assert "--gres=gpu:1" in line
    assert "--gpus" not in line


def test_jobs_that_end_together_are_all_seen(cluster):
    """G-K5: one failed, two fine, seen in one query: the run ends, non-zero, and what is made stays."""
    done = cluster("--retries", "0", jobs="bad+a+b")
    assert done.returncode == 1
    assert "FAILED" in done.stderr
    assert (cluster.folder / "a.txt").exists()
    assert (cluster.folder / "b.txt").exists()


def test_accounting_may_be_off(cluster):
    """G-K6: the profile asks squeue."""
    done = cluster(says="Slurm accounting storage is disabled")
    assert done.returncode == 0, done.stderr
    assert calls(cluster, "squeue")


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_status_queries_may_fail(cluster, command):
    """G-K7: every other query is refused."""
    done = cluster("--slurm-status-command", command, every=2)
    assert done.returncode == 0, done.stderr
    assert calls(cluster, command)


def test_submissions_may_fail_twice(cluster):
    """G-K8: a busy controller refuses twice; the third attempt is taken."""
    done = cluster(sbatch_fails=2)
    assert done.returncode == 0, done.stderr
    assert len(submitted(cluster)) == 3


def test_a_file_that_a_shared_disk_shows_late(cluster):
    """G-L4: the run waits for it, not longer."""
    done = cluster("--latency-wait", "60", "--retries", "0", late=3)
    assert done.returncode == 0, done.stderr
    assert (cluster.folder / "a.txt").exists()


def test_inside_a_job_of_slurm(cluster):
    """G-K9: the run says so, and its jobs inherit nothing of the job that it runs in."""
    done = cluster(environment={"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "100", "SLURM_CPUS_PER_TASK": "1"})
    assert done.returncode == 0, done.stderr
    assert "running snakemake in a SLURM job context" in done.stderr
    assert [call["environment"] for call in calls(cluster, "sbatch")] == [[]]
