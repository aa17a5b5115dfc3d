"""How long a training step takes, and how much memory, on cohorts of any size: generated features, no slides.

    python scripts/benchmark_scale.py --scans 200 2000 --tiles 1000 --dim 1536 --folder /scratch/scale --memory-gb 4 \
        --output scale.tsv

Writes features files as extract_features.py does, two scans per specimen (kept for the next call), and times for each
size of the cohort: opening it, drawing the tiles of a step of the reference settings (16 specimens x 2 scans x 512
tiles; `draw_cpu_ms` leaves out waiting for the disk and other processes), and whole steps of one model: each drawing
its own tiles (`alone_ms`), and as training does, where the tiles of the next step are read while one computes
(`step_ms`). Rows say how the features were held: in memory, or in their files. `--cold` asks the system to forget the
files it holds in memory, before the drawing and before each kind of step; every kind then has batches of its own.
"""

import argparse
import logging
import os
import resource
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from isoslide import atomic, cli, status

SPECIMENS, TILES = 16, 512


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--scans", type=int, nargs="+", required=True, help="sizes of the cohort")
    parser.add_argument("--tiles", type=int, default=1000, help="tiles per scan")
    parser.add_argument("--dim", type=int, default=1536, help="length of a feature vector")
    parser.add_argument("--draws", type=int, default=50, help="batches that are drawn and timed")
    parser.add_argument("--steps", type=int, default=0, help="whole training steps that are timed")
    parser.add_argument("--memory-gb", type=float, default=4, help="features above this size stay in their files")
    parser.add_argument("--cold", action="store_true", help="start with files that are not in memory")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the features files")
    parser.add_argument("--output", required=True, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    import torch

    torch.set_num_threads(args.threads)
    rows = [measure(args, n, generate(args, n)) for n in args.scans]
    atomic.write_table(args.output, pd.DataFrame(rows))


def generate(args: argparse.Namespace, n: int) -> pd.DataFrame:
    """Write the features files that are absent and their status table; return the rows of a fold that trains on all."""
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    block = rng.normal(size=(args.tiles + 997, args.dim)).astype(np.float16)
    table, rows = [], []
    for i in range(n):
        path = args.folder / f"{i:06d}.h5"
        scan = {"scan": path.stem, "scanner": "AB"[i % 2], "specimen": f"S{i // 2}"}
        if not path.exists():
            with atomic.output(path) as temporary, h5py.File(temporary, "w") as file:
                start = i % 997
                file.create_dataset("features", data=block[start : start + args.tiles])
                file.create_dataset("tile_ids", data=np.arange(args.tiles))
                file.attrs.update(reference=scan["specimen"], paired=True, encoder="generated")
        table.append(scan | {"status": status.OK, "path": path, "n_tiles": args.tiles, "key": path.stem})
        rows.append(scan | {"patient": scan["specimen"], "label": str(i // 2 % 2)})
    status.write(args.folder / f"{n}.tsv", table)
    return pd.DataFrame(rows)


def measure(args: argparse.Namespace, n: int, rows: pd.DataFrame) -> dict[str, object]:
    """Return the seconds and megabytes that a cohort of n scans takes."""
    import torch

    from isoslide import bags, sampling, steps

    if args.cold:
        forget(args.folder)
    start = time.perf_counter()
    features = bags.load(str(args.folder / f"{n}.tsv"), memory_gb=args.memory_gb)
    fold = sampling.specimens(rows, features)
    opened = time.perf_counter() - start
    tiles = steps.Tiles(features.tensor(), torch.device("cpu"), torch.float32)
    source = sampling.paired(fold, features, np.random.default_rng(1), SPECIMENS, TILES)
    drawn = []
    for batch in islice(source, args.draws + 1):
        start, used = time.perf_counter(), time.process_time()
        tiles.draw(torch.from_numpy(batch.rows))
        drawn.append((time.perf_counter() - start, time.process_time() - used))
    row = {
        "scans": n,
        "feature_gb": round(n * args.tiles * args.dim * 2 / 1e9, 2),
        "held": "memory" if isinstance(features.features, np.ndarray) else "files",
        "cold": args.cold,
        "open_s": round(opened, 4),
        "draw_ms": round(1e3 * float(np.median([clock for clock, _ in drawn[1:]])), 4),
        "draw_cpu_ms": round(1e3 * float(np.median([used for _, used in drawn[1:]])), 4),
        "alone_ms": steps_ms(args, features, tiles, source, False) if args.steps else "",
        "step_ms": steps_ms(args, features, tiles, source, True) if args.steps else "",
        "own_mb": resident_mb("RssAnon"),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    logging.info("%s", row)
    return row


def steps_ms(args: argparse.Namespace, features, tiles, batches: Iterator, ahead: bool) -> float:
    """Return the mean milliseconds of a step of one model: batch, tiles (`ahead`: read meanwhile), update."""
    import torch

    from isoslide import aggregators, layers, steps

    if args.cold:
        forget(args.folder)
    shape = layers.Shape(features.dim)
    state = aggregators.init(shape, [torch.Generator().manual_seed(0)])
    parameters = [state[name].requires_grad_() for name in layers.trainable(state)]
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    drawn = steps.reading_ahead(batches, tiles, shape, args.steps + 1) if ahead else islice(batches, args.steps + 1)
    ends = []
    for batch in drawn:
        x = tiles.draw(steps.drawn_rows(batch, shape))
        logits = aggregators.forward(state, shape, x, torch.from_numpy(batch.valid)).logits
        labels = torch.from_numpy(batch.labels).long().flatten()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
        ends.append(time.perf_counter())
    return round(1e3 * (ends[-1] - ends[0]) / args.steps, 1)


def forget(folder: Path) -> None:
    """Ask the system to drop the folder's files from its memory."""
    for path in folder.glob("*.h5"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_mb(name: str) -> int:
    """Return a field of this process's memory in MB, as Linux counts it; 0 where it does not."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    main()
