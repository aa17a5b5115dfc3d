"""How long Snakemake plans and schedules a large cohort: the real rules, whose commands are replaced by `touch`.

Example:
    python scripts/benchmark_plan.py --folder /tmp/plan --scans 27042 --patients 6155

Writes a sheet and empty slides into the folder, then measures a dry run with nothing done, the whole schedule of
trivial jobs, a dry run with everything done, what one cluster job spends on parsing, the calls of the file system
(where strace is installed) and the number of files. Prints a table.
"""

import argparse
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from isoslide import atomic, cli

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ("uni", "uni2_h", "conch_v1_5", "virchow2", "prov_gigapath", "h_optimus_1", "h0_mini", "phikon_v2")
SCANNERS = ("A", "B", "C", "D")
STUB = "for file in {output:q}; do case $file in */figures) mkdir -p $file ;; *) : >$file ;; esac; done"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written; must not exist")
    parser.add_argument("--scans", type=int, default=27_042, help="number of scans")
    parser.add_argument("--patients", type=int, default=6155, help="number of patients")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), help="ids of the registry")
    parser.add_argument("--tasks", type=int, default=2, help="number of tasks")
    parser.add_argument("--arms", type=int, default=6, help="number of arms, the control included")
    parser.add_argument("--seeds", type=int, default=5, help="seeds")
    parser.add_argument("--batch-size", type=int, help="scans per job of the slide stages")
    parser.add_argument("--cores", type=int, default=16, help="trivial jobs at once")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    copy_workflow(args.folder)
    sheet = write_sheet(args.folder, args.scans, args.patients)
    write_weights(args.folder, args.encoders)
    write_config(args)
    for line in measure(args, sheet):
        print(line, flush=True)


def copy_workflow(folder: Path) -> None:
    """Copy the workflow into a new folder, with every rule's command replaced by one that makes its outputs empty."""
    folder.mkdir(parents=True)
    for name in ("workflow", "scripts", "resources", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    for path in folder.glob("workflow/rules/*.smk"):
        text = re.sub(r'shell:\n +""".*?"""', f'shell:\n        "{STUB}"', path.read_text(), flags=re.DOTALL)
        path.write_text(text)


def write_weights(folder: Path, names: Iterable[str]) -> None:
    """Write an empty file in the place of each encoder's weights: a dry run looks whether they are there."""
    encoders = yaml.safe_load((folder / "resources/encoders.yaml").read_text())
    for name in names:
        path = folder / "resources/weights" / encoders[name]["weights"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_sheet(folder: Path, n_scans: int, n_patients: int) -> pd.DataFrame:
    """Write and return a sheet of specimens scanned once to four times, with labels; its slides are empty files."""
    rng = np.random.default_rng(0)
    patient = np.sort(np.r_[np.arange(n_patients), rng.integers(0, n_patients, n_scans - n_patients)])
    nth = pd.Series(patient).groupby(patient).cumcount().to_numpy()
    scanner = np.array(SCANNERS)[nth % len(SCANNERS)]
    specimen = [f"P{p:05d}-{n // len(SCANNERS)}" for p, n in zip(patient, nth, strict=True)]
    table = pd.DataFrame({"scan": [f"{s}_{a}" for s, a in zip(specimen, scanner, strict=True)]})
    table["path"] = "slides/" + table["scan"] + ".svs"
    table = table.assign(scanner=scanner, specimen=specimen, patient=[f"P{p:05d}" for p in patient])
    table["response"] = np.where(patient % 2, "yes", "no")
    table["months"], table["event"] = patient % 60 + 1, patient // 2 % 2
    atomic.write_table(folder / "config/slides.tsv", table)
    (folder / "slides").mkdir()
    for path in table["path"]:
        (folder / path).touch()
    return table


def write_config(args: argparse.Namespace) -> None:
    """Write a configuration with as many encoders, tasks, arms and seeds as asked for."""
    survival = {"type": "survival", "time": "months", "event": "event", "poor_before": 24, "good_after": 24}
    binary = {"type": "binary", "label": "response", "positive": "yes"}
    robust = {
        f"robust{i}": {"sampler": "paired", "embedding_weight": i, "score_weight": i} for i in range(1, args.arms)
    }
    config = {
        "sheet": "config/slides.tsv",
        "encoders": args.encoders,
        "device": "cuda",
        "tasks": {f"response{i}": binary for i in range(1, args.tasks)} | {"survival": survival},
        "arms": {"paired": {"sampler": "paired"}} | robust,
        "control": "paired",
        "training": {"seeds": args.seeds},
    }
    if args.batch_size:
        config["batch_size"] = args.batch_size
    (args.folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def measure(args: argparse.Namespace, sheet: pd.DataFrame) -> Iterator[str]:
    """Run everything; yield the lines of the table."""
    folder = args.folder
    yield f"dry run, nothing done: {snakemake(folder, '-n', '--quiet', 'all')}"
    yield f"calls of the file system per scan in it: {calls_per_scan(folder, len(sheet))}"
    whole = snakemake(folder, "--cores", str(args.cores), "--quiet", "all", "--resources", "gpu=8")
    yield f"whole schedule of trivial jobs ({len(list(folder.glob('.snakemake/metadata/*')))} outputs): {whole}"
    yield f"dry run, everything done: {snakemake(folder, '-n', '--quiet', 'all')}"
    yield f"calls of the file system per scan in it: {calls_per_scan(folder, len(sheet))}"
    job = sorted(folder.glob("results/status/features/*/*.tsv"))[0]
    target = f"extract_features:encoder={job.parent.name},batch={job.stem}"
    yield f"one job of a batch: {snakemake(folder, *as_in_a_job(target, 'extract_features'))}"
    target = f"train_models:task=survival,encoder={args.encoders[0]},arm=paired"
    yield f"one job of an arm: {snakemake(folder, *as_in_a_job(target, 'train_models'))}"
    for name in ("results", ".snakemake"):
        yield f"{name}: {inodes(folder / name)}"
    yield f"files of scans and specimens that real jobs add to results: {files_of_scans(folder, sheet)}"
    yield f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def snakemake(folder: Path, *arguments: str) -> str:
    """Run snakemake with the workstation's profile and return its seconds and its peak memory."""
    command = ["snakemake", "--workflow-profile", "workflow/profiles/workstation", *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        cli.fail(f"{' '.join(command)} ended with {code}: {errors.decode()[-2000:]}")
    seconds, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return f"{seconds:.1f} s ({processor:.1f} s of processor), {usage.ru_maxrss / 1024:.0f} MB"


def as_in_a_job(target: str, rule: str) -> list[str]:
    """Return the arguments with which an executor starts snakemake for one job."""
    return [
        *(
            "--target-jobs",
            target,
            "--allowed-rules",
            rule,
            "--force",
            "--force-use-threads",
            "--nolock",
            "--cores",
            "1",
        ),
        *("--mode", "remote", "--ignore-incomplete", "--quiet", "all"),
    ]


def calls_per_scan(folder: Path, n_scans: int) -> str:
    """Return how many calls on files a dry run makes per scan."""
    if not shutil.which("strace"):
        return "no strace on this machine"
    command = ["strace", "-f", "-c", "-o", "calls.txt", "-e", "trace=%file", "snakemake", "-n", "--quiet", "all"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    counts = re.findall(
        r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) (?!.* total$)", (folder / "calls.txt").read_text(), re.MULTILINE
    )
    return f"{sum(map(int, counts)) / n_scans:.1f}"


def inodes(folder: Path) -> str:
    """Return the number of files and folders under a folder."""
    n_folders = n_files = 0
    for _, folders, files in os.walk(folder):
        n_folders, n_files = n_folders + len(folders), n_files + len(files)
    return f"{n_files} files, {n_folders} folders"


def files_of_scans(folder: Path, sheet: pd.DataFrame) -> int:
    """Return how many files the slide stages write beside their tables: per scan outline, overlay, tiles and features,
    per specimen of several scans record and picture of the registration.
    """
    views = len(list(folder.glob("results/status/tiles/*.tsv")))
    encoders = len(list(folder.glob("results/status/features/*.tsv")))
    several = (sheet["specimen"].value_counts() > 1).sum()
    return int(len(sheet) * (2 + views + encoders) + 2 * several)


if __name__ == "__main__":
    main()
