"""Jobs of one machine share its GPUs: `snakemake --cores 16` without a profile does not put four of them on GPU 0."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNAKEFILE = """
rule all:
    input: expand("{job}.txt", job=range(4))
rule job:
    output: "{job}.txt"
    resources: gpu=1
    shell: "python job.py {output}"
"""
JOB = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT / "scripts")!r})
from isoslide import device
device.claim("cuda", folder=".")
start = time.time()
time.sleep(1)
open(sys.argv[1], "w").write(f"{{os.environ['CUDA_VISIBLE_DEVICES']}} {{start}} {{time.time()}}")
"""


@pytest.mark.parametrize("arguments", [[], ["--resources", "gpu=2"]], ids=["bare", "with the profile's limit"])
def test_no_gpu_has_two_jobs_at_once(tmp_path, arguments):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.py").write_text(JOB)
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: card (UUID: GPU-a)'\necho 'GPU 1: card (UUID: GPU-b)'\n")
    listing.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = ["snakemake", "--cores", "16", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = [path.read_text().split() for path in sorted(tmp_path.glob("?.txt"))]
    assert {gpu for gpu, _, _ in jobs} == {"0", "1"}
    for gpu in ("0", "1"):
        times = sorted((float(start), float(end)) for name, start, end in jobs if name == gpu)
        assert all(end <= start for (_, end), (start, _) in zip(times, times[1:], strict=False))
