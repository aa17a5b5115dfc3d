"""Write mean and variance of the features of every scan, once per encoder.

    python scripts/summarise_features.py --features results/status/features/efficientnet_lite0.tsv \
        --output results/exports/summaries/efficientnet_lite0.safetensors

What compares scans with a cohort reads them instead of all features.
"""

import argparse

from isoslide import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--features", required=True, help="status table of the features of an encoder")
    parser.add_argument("--output", required=True, help="safetensors file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    from isoslide import summaries

    try:
        found = summaries.summarise(args.features)
    except summaries.SummaryError as error:
        cli.fail(str(error))
    summaries.write(args.output, found)


if __name__ == "__main__":
    main()
