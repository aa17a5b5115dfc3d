"""Write the demo cohort's sample sheet, or make its slides out of one real slide.

    python scripts/make_demo.py --sheet config/slides.tsv
    python scripts/make_demo.py --slide resources/CMU-1-Small-Region.svs --folder results/demo/slides \
        --threads 2 --output results/demo/manifest.tsv

Labels, survival times and scanners are simulated; only the tissue is real. The manifest has one row per scan: scan,
path, key, mpp, and the true affine from the specimen's scan on A to this scan, in µm
(x' = a00 x + a01 y + a02, y' = a10 x + a11 y + a12). Slides that are there with the right content key are kept.
"""

import argparse
import logging
from pathlib import Path

from isoslide import atomic, cli, demo


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--sheet", type=Path, help="write the sample sheet here")
    parser.add_argument("--slide", type=Path, help="real slide that the tissue is taken from")
    parser.add_argument("--folder", type=Path, help="folder of the slides to make")
    parser.add_argument("--output", type=Path, help="manifest of the slides")
    parser.add_argument("--threads", type=int, default=1, help="processes that make slides (default: 1)")
    parser.add_argument("--specimens", nargs="+", metavar="ID", help="make the slides of these only; default: all")
    parser.add_argument("--patients", type=int, default=demo.PATIENTS, help=f"default: {demo.PATIENTS}")
    args = parser.parse_args(argv)
    slides = [args.slide, args.folder, args.output]
    if any(slides) != all(slides) or not (args.sheet or args.slide):
        parser.error("give --sheet, or --slide, --folder and --output together")
    if args.patients < 2 or args.threads < 1:
        parser.error("--patients must be 2 or more, --threads 1 or more")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    patients = demo.patients(args.patients)
    if args.sheet:
        atomic.write_table(args.sheet, demo.sheet(patients))
        logging.info("sheet of %d patients: %s", len(patients), args.sheet)
    if args.slide:
        from isoslide import demo_slides  # image libraries only where pictures are made

        if not args.slide.exists():
            cli.fail(f"no slide {args.slide}: it is part of the repository, restore it")
        glasses = demo.specimens(patients)
        if args.specimens:
            glasses = [glass for glass in glasses if glass.name in args.specimens]
        with cli.timed("slides"):
            manifest = demo_slides.make_cohort(args.slide, args.folder, glasses, args.threads)
        atomic.write_table(args.output, manifest)


if __name__ == "__main__":
    main()
