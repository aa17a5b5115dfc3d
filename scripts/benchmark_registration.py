"""Measure the registration stage where the truth is known, and its time and memory on large slides.

    python scripts/benchmark_registration.py simulated --slides resources/CMU-1-Small-Region.svs \
        results/demo/slides/P0*_A.tif --output simulated.tsv
    python scripts/benchmark_registration.py large --slides resources/CMU-1-Small-Region.svs --output large.tsv

`simulated` lays random other scans of each slide onto it (any angle, mirrored, 0.4-2.2 times the pixel size, shifted,
other colours, blurred, JPEG, smoothly bent) and compares with the true map; it also lays each slide onto a scan of the
next one, which must be refused. It ends with exit code 1 where a wrong map passed. `large` writes two pairs of scans of
one generated glass, one pair of large scans and one of small ones, into a temporary folder (1.5 GB for a side of 40,000
px), and registers each pair in a process of its own on one thread. `pair` is that process.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from isoslide import atomic, cli, config, registration, registration_benchmark, registration_coarse
from isoslide.registration_benchmark import Picture
from isoslide.registration_specimen import Registration, register
from isoslide.slide import Slide

MPP = 0.5  # µm/px that the slides of `simulated` are read at
GLASS_UM = 10_000.0  # side of the generated glass
POINTS = 200  # of the tissue, at which a map is compared with the truth


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    simulated = commands.add_parser("simulated", help="errors against known maps")
    large = commands.add_parser("large", help="time and memory of a generated pair of large slides")
    pair = commands.add_parser("pair", help="time and memory of one pair of slides, as JSON")
    for command in (simulated, large, pair):
        command.add_argument("--config", default="config/config.yaml", help="settings of tissue and registration")
        command.add_argument("--schema", default="workflow/schemas/config.schema.yaml", help="their defaults")
        command.add_argument("--slides", required=True, nargs="+", help="slides; for a pair the reference first")
    for command in (simulated, large):
        command.add_argument("--output", required=True, type=Path, help="table to write")
        command.add_argument("--seed", type=int, default=1, help="of the random numbers")
    simulated.add_argument(
        "--number", type=int, default=50, help="transforms, in turn of the slides; the first gets 20"
    )
    large.add_argument("--side", type=int, default=40_000, help="px of a large scan")
    large.add_argument("--small-side", type=int, default=10_000, help="px of a small scan of the same glass")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    cv2.setNumThreads(1)
    settings = config.complete(yaml.safe_load(Path(args.config).read_text(encoding="utf-8")), args.schema)
    {"simulated": simulated, "large": large, "pair": pair}[args.command](args, settings)


def simulated(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Write one row a transform, log the summary, and fail where a wrong map passed."""
    turns = np.arange(args.number)
    first = min(20, args.number) if len(args.slides) > 1 else args.number
    order = np.where(turns < first, 0, 1 + (turns - first) % max(1, len(args.slides) - 1))
    rows = []
    for turn, index in enumerate(order):
        rng = np.random.default_rng([args.seed, turn])
        how = registration_benchmark.draw(rng)
        source = _picture(args.slides[index])
        other, truth = registration_benchmark.another_scan(source, how, rng)
        row = {"slide": Path(args.slides[index]).stem, "same_glass": True, **vars(how)}
        rows.append(row | _laid(source, other, truth, settings))
        logging.info("%d of %d: %s", turn + 1, len(order), json.dumps(rows[-1]))
    for index in range(len(args.slides) if len(args.slides) > 1 else 0):
        rng = np.random.default_rng([args.seed, args.number + index])
        stranger = args.slides[(index + 1) % len(args.slides)]
        how = registration_benchmark.draw(rng)
        other, _ = registration_benchmark.another_scan(_picture(stranger), how, rng)
        row = {"slide": Path(args.slides[index]).stem, "same_glass": False, **vars(how)}
        rows.append(row | _laid(_picture(args.slides[index]), other, None, settings))
    table = pd.DataFrame(rows)
    atomic.write_table(args.output, table)
    same, swapped = table[table["same_glass"]], table[~table["same_glass"]]
    passed = same[same["reason"] == ""]
    limit = settings["registration"]["limit_um"]
    silent = int((passed["median_um"] > limit).sum() + (swapped["reason"] == "").sum())
    logging.info(
        "%d of %d registered; true error: median %.3f µm, 95th percentile %.3f µm (of the scans' medians), worst scan "
        "%.3f µm; points of all scans: 95th percentile %.3f µm; refused %d; other glass refused %d of %d; wrong maps "
        "that passed: %d",
        len(passed),
        len(same),
        *np.percentile(passed["median_um"], (50, 95, 100)),
        np.percentile(np.concatenate(passed["errors"].map(json.loads).tolist()), 95),
        len(same) - len(passed),
        int((swapped["reason"] != "").sum()),
        len(swapped),
        silent,
    )
    if silent:
        cli.fail(f"{silent} wrong maps passed: see {args.output}")


def _picture(path: str) -> Picture:
    with Slide(path) as slide:
        return Picture(slide.overview(MPP), MPP)


def _laid(source: Picture, other: Picture, truth: registration_benchmark.Truth | None, settings: Mapping) -> dict:
    """Return what became of one pair: reason, errors that the stage reports, true errors, seconds."""
    start = time.process_time()
    reference, found = _register(source, other, settings)
    row = {"seconds": time.process_time() - start, "reason": found.reason}
    quality = found.quality
    row |= {name: getattr(quality, name) if quality else None for name in ("error_um", "ncc", "agreement", "overlap")}
    if truth is None or found.warp is None:
        return row | {"median_um": None, "p95_um": None, "errors": "[]"}
    points = registration.spread(reference, 40.0, POINTS)
    right = truth(points)
    shown = ((right > 0) & (right < other.size_um)).all(axis=1)
    errors = np.hypot(*(found.warp.apply(points[shown]) - right[shown]).T)
    median, p95 = np.percentile(errors, (50, 95))
    return row | {"median_um": median, "p95_um": p95, "errors": json.dumps(errors.round(3).tolist())}


def _register(
    source: Picture | Slide, other: Picture | Slide, settings: Mapping
) -> tuple[registration.View, Registration]:
    views = [registration_benchmark.seen(scan, settings) for scan in (source, other)]
    first, second = ((view, registration_coarse.find(view)) for view in views)
    return views[0], register(first, second, settings["registration"])


def pair(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Print what one pair costs."""
    before = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    with Slide(args.slides[0]) as first, Slide(args.slides[1]) as second:
        _, found = _register(first, second, settings)
    facts = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "before_mb": before,
        "reason": found.reason,
        "affine": found.warp.affine.tolist() if found.warp is not None else None,
        "error_um": found.quality.error_um if found.quality else None,
    }
    json.dump(facts, sys.stdout)


def _peak_mb() -> float:
    """Return the most memory that this process has held; Linux only (getrusage would count the parent's too)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def large(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Write one row a pair: the large one and the small one."""
    rng = np.random.default_rng(args.seed)
    with Slide(args.slides[0]) as slide:
        glass = registration_benchmark.large_glass(slide, GLASS_UM, rng)
    turn = np.radians(93.0)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.full(2, GLASS_UM / 2)
    turned = np.column_stack([linear, middle - linear @ middle + (60.0, -40.0)])
    rows = []
    for side in (args.side, args.small_side):
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder, name)) for name in ("first.tif", "second.tif")]
            for path, affine, gamma in zip(paths, (registration.IDENTITY, turned), (1.0, 1.2), strict=True):
                with cli.timed(f"writing a scan of {side} px"):
                    registration_benchmark.write_large(Path(path), glass, affine, GLASS_UM / side, side, gamma)
            command = [sys.executable, __file__, "pair", "--config", args.config, "--schema", args.schema]
            done = subprocess.run([*command, "--slides", *paths], stdout=subprocess.PIPE, text=True, check=True)
            size_mb = sum(Path(path).stat().st_size for path in paths) / 1e6
        facts = json.loads(done.stdout)
        affine = facts.pop("affine")
        error = float("nan")
        if affine is not None:
            points = middle + rng.uniform(-0.3, 0.3, (POINTS, 2)) * GLASS_UM
            wrong = registration.apply(np.array(affine), points) - registration.apply(turned, points)
            error = float(np.median(np.hypot(*wrong.T)))
        rows.append({"side_px": side, "files_mb": size_mb, **facts, "true_error_um": error})
        logging.info("%s", json.dumps(rows[-1]))
    atomic.write_table(args.output, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
