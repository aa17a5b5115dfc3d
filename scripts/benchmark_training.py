"""Measure the speed of training against the plain loop, and against the matrix products alone.

    python scripts/benchmark_training.py --output training.tsv
    python scripts/benchmark_training.py --device cuda --models 1 30 --output training_gpu.tsv

Generated features of 1,536 numbers, 200 scans of 5,000 tiles (3 GB in a temporary folder and as much in memory), the
reference's step: 16 specimens x 2 scans x 512 tiles, both robustness losses. The plain loop trains one model at a time
and reads an HDF5 file per bag in workers (`training_benchmark.py`). First a small case checks that both end with the
same weights. Each row is the best of the rounds, which take turns. Seconds are of the processor (workers too) on a CPU,
of the clock on a GPU. `share`: seconds of the step's matrix products alone over those of the step. `--bag` tiles of one
bag are predicted by a TransMIL of the default size, for its memory; 0 for none.
"""

import argparse
import json
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from isoslide import atomic, cli, config

STEPS_OF_REFERENCE = 20_000
CHECKED_STEPS = 8  # rounding differences grow with the steps: about 3e-6 after 10, 0.02 after 30
TOLERANCE = 2e-5  # largest difference of a weight after them, in float32


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--schema", default="workflow/schemas/config.schema.yaml", help="where defaults are")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to train")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--workers", type=int, default=1, help="processes that read for the plain loop")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 3], help="models that train together")
    parser.add_argument("--scans", type=int, default=200, help="number of scans")
    parser.add_argument("--size", type=int, default=5000, help="tiles of a scan")
    parser.add_argument("--dim", type=int, default=1536, help="length of a feature vector")
    parser.add_argument("--specimens", type=int, default=16, help="specimens of a step")
    parser.add_argument("--tiles", type=int, default=512, help="tiles per scan of a step")
    parser.add_argument("--steps", type=int, default=10, help="steps of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way")
    parser.add_argument("--bag", type=int, default=100_000, help="tiles of the bag for TransMIL")
    parser.add_argument("--folder", type=Path, help="where the features go; a temporary folder where absent")
    parser.add_argument("--output", required=True, type=Path, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    import torch

    torch.set_num_threads(args.threads)
    args.settings = config.complete({"sheet": "none", "encoders": ["none"], "arms": {"a": ARM}}, args.schema)
    rows = [big_bag(args)] if args.bag else []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        check_equal(args, Path(folder, "small"))
        rows += measure(args, Path(folder, "large"))
    table = pd.DataFrame(rows)
    atomic.write_table(args.output, table)
    print(table.to_string(index=False))


ARM = {"sampler": "paired", "embedding_weight": 10, "score_weight": 10}


def check_equal(args: argparse.Namespace, folder: Path) -> None:
    """Stop where ours and the plain loop end with different weights on a small case in float32."""
    from isoslide import bags, layers, training, training_benchmark

    table = training_benchmark.make_cohort(folder, 24, 60, 48)
    features = bags.load(str(table))
    fold, shape = training_benchmark.fold_of(features), layers.Shape(48, 2, 32, 3, 16)
    settings = args.settings["training"] | {"steps": CHECKED_STEPS, "selection": "last"}
    arm = args.settings["arms"]["a"] | {"n_anchors": 12}
    paths = [folder / f"{scan}.h5" for scan in features.scans]
    model = training.Model(fold, 0)
    training.train([model, training.Model(fold, 1)], features, shape, arm, settings, 4, 20, args.device)
    plain = training_benchmark.train_plainly(
        training.Model(fold, 0), paths, features, shape, arm, settings, 4, 20, 0, args.device
    )
    largest = max(float((plain[name] - value).abs().max()) for name, value in model.state.items())
    logging.info("small case: weights differ by %.2g at most", largest)
    if not largest < TOLERANCE:
        cli.fail(f"ours and the plain loop differ by {largest:.2g} after {CHECKED_STEPS} steps: one of them is wrong")


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return a row per way and precision, best of the rounds."""
    from isoslide import bags, layers, steps, training, training_benchmark

    table = training_benchmark.make_cohort(folder, args.scans, args.size, args.dim)
    logging.info("%d scans of %d tiles are written", args.scans, args.size)
    features = bags.load(str(table))
    fold, shape = training_benchmark.fold_of(features), layers.Shape(args.dim)
    arm = args.settings["arms"]["a"]
    paths = [folder / f"{scan}.h5" for scan in features.scans]
    sizes = (args.specimens, args.tiles)
    best: dict[tuple[str, str, int], dict[str, float]] = {}
    for _ in range(args.rounds):
        for precision in ("float32", "bfloat16"):
            settings = args.settings["training"] | {"steps": args.steps, "precision": precision, "selection": "last"}
            ways: dict[tuple[str, str, int], Callable[[], Any]] = {
                ("plain loop", precision, 1): lambda settings=settings: training_benchmark.train_plainly(
                    training.Model(fold, 0), paths, features, shape, arm, settings, *sizes, args.workers, args.device
                )
            }
            for number in args.models:
                ways["isoslide", precision, number] = lambda settings=settings, number=number: training.train(
                    [training.Model(fold, seed) for seed in range(number)],
                    features,
                    shape,
                    arm,
                    settings,
                    *sizes,
                    args.device,
                )
            alone = product_seconds(args, shape, precision)
            for way, work in ways.items():
                steps.keep_freed_memory(way[0] == "isoslide")
                found = timed(work, args.device) | {"products": alone}
                logging.info("%s, %s, %d models: %s", *way, json.dumps(found))
                if way not in best or found["seconds"] < best[way]["seconds"]:
                    best[way] = found
    return [row_of(way, found, best, args.steps) for way, found in best.items()]


def row_of(
    way: tuple[str, str, int], found: dict[str, float], best: dict[tuple[str, str, int], dict[str, float]], steps: int
) -> dict[str, Any]:
    """Return a line of the table."""
    of_plain = {precision: best["plain loop", precision, 1]["seconds"] / steps for precision in ("float32", "bfloat16")}
    seconds = found["seconds"] / steps / way[2]
    return {
        "way": way[0],
        "precision": way[1],
        "models": way[2],
        "seconds_per_step_and_model": round(seconds, 4),
        "steps_per_second": round(1 / seconds, 2),
        "models_per_hour": round(3600 / (seconds * STEPS_OF_REFERENCE), 3),
        "times_plain_float32": round(of_plain["float32"] / seconds, 2),
        "times_plain_same": round(of_plain[way[1]] / seconds, 2),
        "share": round(found["products"] / seconds, 2),
        "memory_gb": round(found["memory"] / 1e9, 2),
    }


def timed(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Return seconds of some work, and the most memory used while it ran."""
    import torch

    reset_peak(device)
    start = clock(device)
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"seconds": clock(device) - start, "memory": peak(device)}


def clock(device: str) -> float:
    """Return seconds: of this process and the workers that have ended, or of the clock on a GPU."""
    if device == "cuda":
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def reset_peak(device: str) -> None:
    """Start the measurement of memory anew."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """Return the most bytes in use since `reset_peak`."""
    import torch

    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def product_seconds(args: argparse.Namespace, shape, precision: str) -> float:
    """Return the seconds that the matrix products of a step of one model take alone, each the best of three."""
    import torch

    from isoslide import steps, training_benchmark

    total = 0.0
    for m, k, n in training_benchmark.products(shape, 2 * args.specimens * args.tiles):
        one = torch.randn(m, k, device=args.device).to(steps.PRECISIONS[precision])
        other = torch.randn(k, n, device=args.device).to(steps.PRECISIONS[precision])
        total += min(timed(lambda one=one, other=other: one @ other, args.device)["seconds"] for _ in range(4))
    return total


def big_bag(args: argparse.Namespace) -> dict[str, Any]:
    """Return a row on the prediction of one large bag by TransMIL."""
    import torch

    from isoslide import aggregators, layers

    shape = layers.Shape(args.dim, aggregator="transmil")
    state = aggregators.init(shape, [torch.Generator().manual_seed(0)])
    state = {name: value.to(args.device) for name, value in state.items()}
    x = torch.randn(args.bag, args.dim, device=args.device)
    found = timed(lambda: aggregators.predict(state, shape, x, [args.bag]), args.device)
    logging.info("TransMIL, a bag of %d tiles: %s", args.bag, json.dumps(found))
    memory = round(found["memory"] / 1e9, 2)
    return {"way": f"transmil, bag of {args.bag}", "precision": "float32", "models": 1, "memory_gb": memory}


if __name__ == "__main__":
    main()
