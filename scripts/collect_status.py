"""Put the status tables of a stage's batches together; stop if scans were lost and that is not wanted.

    python scripts/collect_status.py --tables results/status/checks/*.tsv --stage checks --expect 272 \
        --on-bad-slide fail --output results/status/checks.tsv

Of tables that hold several encoders the rows of the stage's own are taken. No scan may be missing or stand twice. With
`--on-bad-slide fail` the scans that did not come through are listed and the exit code is 1; with `skip` they are listed
and left behind, and the report shows them.
"""

import argparse

import pandas as pd

from isoslide import atomic, checks, cli, status

# A scan that could not be laid onto its reference is still used alone, never as a pair; the report counts it.
TOLERATED = {"registrations": "not_registered"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--tables", nargs="+", required=True, help="status tables of the batches")
    parser.add_argument("--stage", required=True, help="name of the stage, for messages")
    parser.add_argument("--expect", type=int, required=True, help="number of scans there must be")
    parser.add_argument("--on-bad-slide", choices=("fail", "skip"), required=True)
    parser.add_argument("--output", required=True, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    table = pd.concat([status.read(path) for path in args.tables]).fillna("").sort_values("scan")
    if "encoder" in table:  # tables of several encoders
        table = table[table["encoder"] == args.stage.partition("/")[2]].drop(columns="encoder")
    twice = table[table["scan"].duplicated()]
    if len(twice) or len(table) != args.expect:
        cli.fail(
            f"stage {args.stage}: {len(table)} rows for {args.expect} scans of the sheet, {len(twice)} of them twice: "
            f"run the stage again with -R"
        )
    if "fingerprint" in table:  # of slides, and of features made elsewhere
        table = checks.mark_duplicates(table)
    if args.stage == "checks":
        for line in checks.cohort_warnings(table):
            print(f"warning: {line}")
    bad = status.bad(table)
    print(f"{args.stage}: {len(table)} scans: {status.summary(table)}")
    for row in bad.to_dict("records"):
        print(f"  {row['scan']} (scanner {row['scanner']}): {row['status']}: {row['reason']}")
    stopping = bad[bad["status"] != TOLERATED.get(args.stage)]
    # Which of two ids a file belongs to only the user knows, so a copy stops the run whatever the policy.
    if (bad["status"] == "duplicate_file").any():
        cli.fail(f"stage {args.stage}: some scans have one and the same file (listed above): mend the sheet")
    if len(stopping) and args.on_bad_slide == "fail":
        cli.fail(
            f"stage {args.stage}: {len(stopping)} of {len(table)} scans cannot be used (listed above): mend them, or "
            "write a reason into the sheet's column 'exclude', or set 'on_bad_slide: skip' in the config"
        )
    atomic.write_table(args.output, table)


if __name__ == "__main__":
    main()
