#!/usr/bin/env python3
"""SLURM's commands as a record of how they were called: jobs end at once, and commands fail as they are told to.

Linked under the name of each command into one folder, beside `plan.json`: how many calls of sbatch fail at first
(`sbatch_fails`), that every so many queries fail (`every`), what sacct says instead of an answer (`says`), by how
many seconds a file shows up after its job has ended (`late`).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.argv[0]).parent
PLAN = json.loads((FOLDER / "plan.json").read_text())


def main(command, arguments):
    calls = FOLDER / f"{command}.calls"
    with open(calls, "a") as file:
        noted = [name for name in os.environ if name.startswith("SLURM_")]
        file.write(json.dumps({"arguments": arguments, "environment": noted}) + "\n")
    nth = len(calls.read_text().splitlines())
    if command == "scontrol":
        print("MinJobAge               = 3600 sec")
    elif command == "sbatch":
        if nth <= PLAN.get("sbatch_fails", 0):
            sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
        submit(nth, arguments)
    elif command in ("squeue", "sacct"):
        if "says" in PLAN and command == "sacct":
            sys.exit(PLAN["says"])
        if nth % PLAN.get("every", nth + 1) == 0:
            sys.exit(f"{command}: error: Connection refused")
        print((FOLDER / "jobs").read_text() if (FOLDER / "jobs").exists() else "", end="")


def submit(number, arguments):
    """Make the job's file, or fail, as the job's name says."""
    name = re.search(r"rule_\w+_wildcards_(\w+)", arguments[arguments.index("--comment") + 1])[1]
    folder = Path(arguments[arguments.index("-D") + 1])
    if name != "bad":
        detached = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["sh", "-c", f"sleep {PLAN.get('late', 0)}; : >{name}.txt"], cwd=folder, **detached)
    with open(FOLDER / "jobs", "a") as file:
        file.write(f"{number}|{'FAILED' if name == 'bad' else 'COMPLETED'}\n")
    print(number)


main(Path(sys.argv[0]).name, sys.argv[1:])
