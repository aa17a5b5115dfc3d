"""What every log starts with, and errors that the user can mend as one line."""

import fcntl
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from isoslide import features_file

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
START = "import argparse; from isoslide import cli, features_file; cli.start_logging(argparse.Namespace(a=1));"


def stderr(program, **environment):
    """The lines that a program writes, without their times."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {program}"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment})
    return done.returncode, [line.split(" ", 2)[2] for line in done.stderr.splitlines()]


def test_the_first_line_says_what_runs_where():
    facts = {"SLURM_JOB_ID": "12", "SLURM_JOB_PARTITION": "gpu", "CUDA_VISIBLE_DEVICES": "1"}
    code, (line,) = stderr(START, **facts)
    assert code == 0
    assert line.startswith("INFO isoslide ")
    assert line.endswith(', job 12, partition gpu, GPUs 1 {"a": 1}')


def test_a_locked_file_is_one_line_and_is_not_made_again(tmp_path):
    """Another process holds the lock: a file that cannot be looked into is not taken for a damaged one."""
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file.attrs["key"] = "k"
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, lines = stderr(START + f"features_file.stored_key(__import__('pathlib').Path({str(path)!r}))")
        assert code == 1
        assert len(lines) == 2
        assert "set HDF5_USE_FILE_LOCKING=FALSE and run again" in lines[1]
        program = START + f"print(features_file.stored_key(__import__('pathlib').Path({str(path)!r})))"
        assert stderr(program, HDF5_USE_FILE_LOCKING="FALSE")[0] == 0


def test_a_disk_without_locks(tmp_path, monkeypatch):
    """As HDF5 words it on network disks that are mounted without locks."""

    def refuse(*arguments):
        raise OSError("Unable to open file (unable to lock file, errno = 37, error message = 'No locks available')")

    monkeypatch.setattr(features_file.h5py, "File", refuse)
    with pytest.raises(OSError, match="unable to lock file"):
        features_file.stored_key(tmp_path / "s.h5")
