"""Measure how much of an encoder's own speed the extraction of features reaches.

    python scripts/benchmark_features.py --encoders efficientnet_lite0 --output features.md
    python scripts/benchmark_features.py --encoders uni h_optimus_0 --device cuda --threads 8 --side 40960 --output g.md
    python scripts/benchmark_features.py --encoders kaiko_s16 --trident trident/bin/python --output t.md

Makes an SVS-like slide of real tissue in a temporary folder and writes a Markdown table: tiles per second of the whole
stage (reading ahead, encoding, writing; the network is loaded before) over those of the network alone on random tiles
that lie on the device, at the same batch and precision. Rounds of the two alternate, and the best of each counts.
Encoders whose weights are not there get random ones: speed does not depend on them. With `--trident`, the Python of an
environment that has TRIDENT, the same slide, tiles, network, batch and device go through TRIDENT too.
"""

import argparse
import json
import logging
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import benchmark_reading
from isoslide import cli, device, registry

REGISTRY = Path(__file__).resolve().parents[1] / "resources/encoders.yaml"
MODEL_TILES = {"cpu": 256, "cuda": 4096}  # that a round of the network alone encodes
STORED_PX = 240
TRIDENT = {"kaiko_s16": "kaiko-vits16", "kaiko_b16": "kaiko-vitb16", "uni": "uni_v1", "h_optimus_0": "hoptimus0"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--encoders", nargs="+", default=["efficientnet_lite0"], help="ids in the registry")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the encoders run")
    parser.add_argument("--threads", type=int, default=1, help="threads for reading, and for the encoder on a CPU")
    parser.add_argument("--batch-size", type=int, help="tiles per forward pass; 4 on a CPU and 256 on a GPU")
    parser.add_argument("--side", type=int, default=8192, help="px along the side of the slide, at 0.25 µm per pixel")
    parser.add_argument("--scans", type=int, default=2, help="times that the slide is encoded in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--trident", help="Python of TRIDENT's environment, to measure its extraction too")
    parser.add_argument("--output", required=True, help="Markdown file to write")
    return parser.parse_args(argv)


@dataclass
class Speed:
    """Tiles per second, the best of the rounds; seconds of a processor per tile; what the last round's clock says."""

    name: str
    batch: int
    precision: str
    model: float = 0.0
    stage: float = 0.0
    model_cpu: float = float("inf")
    stage_cpu: float = float("inf")
    clock: str = ""
    trident: float = 0.0
    trident_cpu: float = float("inf")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    if args.trident and (unknown := sorted(set(args.encoders) - set(TRIDENT))):
        cli.fail(f"--trident: no name of TRIDENT's is known for encoder {unknown[0]}: use one of {sorted(TRIDENT)}")
    try:
        args.device = device.claim(args.device)
    except device.DeviceError as error:
        cli.fail(str(error))
    import torch

    torch.set_num_threads(args.threads)
    place = device.describe(args.device)
    entries = registry.load(REGISTRY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slide.svs")
        benchmark_reading.make_slide(path, STORED_PX, args.side)
        rows = [measure(entries[name], path, args) for name in args.encoders]
    Path(args.output).write_text(f"{place['name']}, threads: {args.threads}\n\n{table(rows)}", encoding="utf-8")
    logging.info("wrote %s", args.output)


def measure(entry: registry.Encoder, path: Path, args: argparse.Namespace) -> Speed:
    """Return the speeds of an encoder, alone and in the stage."""
    import torch

    from isoslide import extraction

    encoder = load(entry, path.parent, args.device)
    feeder = extraction.Feeder(encoder, args.batch_size or (4 if args.device == "cpu" else 256))
    speed = Speed(entry.id, feeder.batch, encoder.precision)
    generator = np.random.default_rng(0)
    shape = (feeder.batch, entry.tile_px, entry.tile_px, 3)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8)).to(args.device)
    tiles = write_tiles(entry, path, args.side)
    for number in range(args.rounds + 1):  # the first one warms up
        model, model_cpu = alone(encoder, images, MODEL_TILES[args.device])
        stage, stage_cpu, clock = staged(feeder, tiles, path, args)
        logging.info("%s, round %d: %.1f tiles/s alone, %.1f in the stage; %s", entry.id, number, model, stage, clock)
        if number:
            speed.model, speed.stage = max(speed.model, model), max(speed.stage, stage)
            speed.model_cpu, speed.stage_cpu = min(speed.model_cpu, model_cpu), min(speed.stage_cpu, stage_cpu)
            speed.clock, speed.batch = clock, feeder.batch
            if args.trident:
                rival, rival_cpu = by_trident(entry.id, feeder.batch, tiles, path, args)
                speed.trident, speed.trident_cpu = max(speed.trident, rival), min(speed.trident_cpu, rival_cpu)
    return speed


def load(entry: registry.Encoder, folder: Path, where: str):  # noqa: ANN201 - torch is not imported yet
    """Return the loaded encoder, with random weights where it has none that come with a package."""
    from safetensors.torch import save_file

    from isoslide import networks, tile_encoder

    if not entry.weights.startswith("package:"):
        state = networks.timm_network(entry).state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "random.safetensors")
        entry = replace(entry, weights="random.safetensors", sha256="", key_map="", loader="timm")
    return tile_encoder.TileEncoder(entry, folder, where)


def write_tiles(entry: registry.Encoder, path: Path, side: int) -> Path:
    """Write the tiles of the whole slide, as the stage before would, and return the file."""
    from isoslide import grid

    tile_um, mpp = entry.tile_px * entry.mpp, benchmark_reading.MPP
    count = int(side * mpp / tile_um)
    row, column = np.divmod(np.arange(count**2), count)
    ids = row * grid.ROW + column
    corners = grid.corners(ids, tile_um)
    attrs = {"tile_px": entry.tile_px, "mpp": entry.mpp, "mpp_x": mpp, "mpp_y": mpp, "reference": "", "paired": False}
    coords = grid.level0_corners(corners, tile_um, grid.IDENTITY, (mpp, mpp))
    tiles = grid.Tiles(coords, ids, np.zeros(len(ids), bool), corners, grid.IDENTITY, attrs | {"key": ""})
    grid.write(path.with_suffix(".h5"), tiles, (side, side))
    return path.with_suffix(".h5")


def alone(encoder, images, n_tiles: int) -> tuple[float, float]:  # noqa: ANN001
    """Return tiles per second and processor seconds per tile of the network on tiles that lie on the device."""
    import torch

    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(max(1, n_tiles // len(images))):
        encoder.launch(images)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    done = max(1, n_tiles // len(images)) * len(images)
    return done / (time.perf_counter() - start), (time.process_time() - cpu) / done


def staged(feeder, tiles_path: Path, path: Path, args: argparse.Namespace) -> tuple[float, float, str]:  # noqa: ANN001
    """Return tiles per second and processor seconds per tile of the whole stage, and what its clock says."""
    from isoslide import extraction, grid, pace
    from isoslide.slide import Reading

    check = {"path": str(path), "width": args.side, "height": args.side}
    check |= {"mpp_x": benchmark_reading.MPP, "mpp_y": benchmark_reading.MPP}
    tiles = grid.read_tiles_file(tiles_path)
    clock = pace.Clock()
    start, cpu = time.perf_counter(), time.process_time()
    rows = ({"scan": str(i)} for i in range(args.scans))
    scans = ((extraction.ScanTiles(row, check, tiles, Reading()), [feeder]) for row in rows)
    for scan, found in extraction.encode_scans(scans, args.threads, clock):
        extraction.write(path.with_name(f"{scan.row['scan']}.features.h5"), found[0], scan, tiles_path, feeder, "")
    seconds = time.perf_counter() - start
    return clock.tiles / seconds, (time.process_time() - cpu) / clock.tiles, str(clock)


def by_trident(name: str, batch: int, tiles: Path, path: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Return tiles per second and processor seconds per tile of TRIDENT's own extraction, of one scan."""
    command = [args.trident, Path(__file__).with_name("benchmark_trident.py"), "--slide", path, "--tiles", tiles]
    command += ["--encoder", TRIDENT[name], "--weights", path.with_name("random.safetensors"), "--device", args.device]
    command += ["--batch-size", batch, "--threads", args.threads, "--folder", path.with_name("trident")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        cli.fail(f"TRIDENT ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    logging.info("%s by TRIDENT: %.1f tiles/s", name, told["tiles"] / told["seconds"])
    return told["tiles"] / told["seconds"], told["cpu"] / told["tiles"]


def table(rows: list[Speed]) -> str:
    """Return the speeds as a Markdown table, TRIDENT's at its end where they were measured."""
    rival = any(row.trident for row in rows)
    lines = [
        "| encoder | batch | precision | alone, tiles/s | stage, tiles/s | share | alone, core ms | stage, core ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    if rival:
        lines = [lines[0] + " TRIDENT, tiles/s | TRIDENT, core ms |", lines[1] + " --- | --- |"]
    for row in rows:
        speeds = f"{row.model:.1f} | {row.stage:.1f} | {row.stage / row.model:.2f}"
        cpu = f"{1e3 * row.model_cpu:.2f} | {1e3 * row.stage_cpu:.2f}"
        last = f" {row.trident:.1f} | {1e3 * row.trident_cpu:.2f} |" if rival else ""
        lines.append(f"| {row.name} | {row.batch} | {row.precision} | {speeds} | {cpu} |{last}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
