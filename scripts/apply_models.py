"""Score scans that no model has seen with the models of a folder, and say which lie outside their training range.

    python scripts/apply_models.py --folder results/exports/response/efficientnet_lite0/robust \
        --features results/status/features/efficientnet_lite0.tsv \
        --slides results/status/checks.tsv results/status/tissue.tsv --output results/applied/response.tsv

One row per scan of the features' table, also of those that were lost on the way. Columns: docs/using.md.
"""

import argparse
import logging

from isoslide import atomic, cli, model_folder, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--folder", required=True, help="folder of export_models.py")
    parser.add_argument("--features", required=True, help="status table of the features that the card names")
    parser.add_argument("--slides", nargs="*", default=[], help="status tables of checks and tissue")
    parser.add_argument("--memory-gb", type=float, default=4, help="features above this size stay in their files")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--output", required=True, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    import torch

    from isoslide import applying, bags, summaries

    torch.set_num_threads(args.threads)
    slides = [status.read(path) for path in args.slides]
    try:
        card = model_folder.read_card(args.folder)
        model_folder.check_models(args.folder, card)
        table = applying.apply(args.folder, card, args.features, slides, args.memory_gb)
    except (bags.BagError, model_folder.FolderError, summaries.SummaryError) as error:
        cli.fail(str(error))
    atomic.write_table(args.output, table)
    n_out = int((table["out_of_range"] == "yes").sum())
    logging.info("%d scans: %s; %d outside the training range", len(table), status.summary(table), n_out)


if __name__ == "__main__":
    main()
