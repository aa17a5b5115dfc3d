"""Outline the tissue of a batch of scans with a segmenter of TRIDENT, in its environment (envs/trident.yaml).

    python scripts/outline_with_trident.py --checks results/status/checks/b0.tsv --segmenter hest \
        --results results/tissue

Run it between the stages checks and tissue: the tissue stage uses outlines that are there as it uses those of a person.
A file that is there is kept, unless the tissue stage made it. TRIDENT fetches the segmenter's weights at first use, or
takes them from where its file local_ckpts.json says; hest and grandqc are for non-commercial use.
"""

import argparse
import logging
from pathlib import Path

from isoslide import atomic, cli, geojson, status

PAGE = "https://huggingface.co/MahmoodLab/hest-tissue-seg"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, type=Path, help="status table of the checks stage")
    parser.add_argument("--segmenter", choices=("hest", "grandqc", "otsu"), required=True, help="TRIDENT's name of it")
    parser.add_argument("--scans", nargs="+", metavar="ID", help="only these scans")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the segmenter runs")
    parser.add_argument("--threads", type=int, default=1, help="processes that read")
    parser.add_argument("--results", required=True, type=Path, help="folder of the outlines")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    try:
        from trident import load_wsi
        from trident.segmentation_models import segmentation_model_factory
    except ImportError as error:
        cli.fail(
            f"TRIDENT cannot be imported ({error}): run this in the environment envs/trident.yaml (docs/encoders.md)"
        )
    try:
        segmenter = segmentation_model_factory(args.segmenter)
    except OSError as error:  # FileNotFoundError, and URLError for the backbone that torchvision fetches
        text = " ".join(str(error).split())
        cli.fail(f"TRIDENT has no weights of {args.segmenter} ({text}): start it once where there is a network; {PAGE}")
    checks = status.read(args.checks)
    n_done = 0
    for row in checks[checks["status"] == status.OK].to_dict("records"):
        path = args.results / f"{row['scan']}.geojson"
        if (args.scans and row["scan"] not in args.scans) or (path.exists() and geojson.read(path).edited):
            continue
        with load_wsi(row["path"], lazy_init=False, mpp=float(row["mpp_x"])) as wsi:
            outlines = wsi.segment_tissue(
                segmenter,
                target_mag=segmenter.target_mag,
                holes_are_tissue=False,
                device=args.device,
                num_workers=args.threads,
            )
        atomic.write_text(path, outlines.to_json())
        logging.info("%s: %d pieces", row["scan"], len(outlines))
        n_done += 1
    logging.info("%d of %d scans outlined", n_done, len(checks))


if __name__ == "__main__":
    main()
