"""Measure how fast TRIDENT itself encodes the tiles of a slide, for comparison; runs in TRIDENT's environment.

    trident/bin/python scripts/benchmark_trident.py --slide slide.svs --tiles slide.h5 --encoder kaiko-vits16 \
        --weights kaiko.safetensors --device cpu --batch-size 4 --threads 1 --folder /tmp/features

Prints JSON: tiles, seconds of TRIDENT's own extraction (its tile reader, its encoder, its file; the network is loaded
before), and its processor seconds. `benchmark_features.py --trident` calls it.
"""

import argparse
import json
import os
import time


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--slide", required=True, help="slide file")
    parser.add_argument("--tiles", required=True, help="HDF5 file with coords, as TRIDENT reads them")
    parser.add_argument("--encoder", required=True, help="TRIDENT's name of the encoder")
    parser.add_argument("--weights", required=True, help="file of its weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the encoder runs")
    parser.add_argument("--batch-size", type=int, required=True, help="tiles per forward pass")
    parser.add_argument("--threads", type=int, default=1, help="threads of the encoder on a CPU")
    parser.add_argument("--folder", required=True, help="folder of the features file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import h5py
    import torch
    from trident import load_wsi
    from trident.patch_encoder_models import encoder_factory

    torch.set_num_threads(args.threads)
    encoder = encoder_factory(args.encoder, weights_path=args.weights)
    slide = load_wsi(slide_path=args.slide, lazy_init=False)
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    with torch.inference_mode():
        path = slide.extract_patch_features(
            encoder, args.tiles, args.folder, device=args.device, batch_limit=args.batch_size
        )
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu  # with its reading processes
    with h5py.File(path) as file:
        print(json.dumps({"tiles": len(file["features"]), "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
