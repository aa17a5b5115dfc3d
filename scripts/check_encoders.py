"""Check whether encoders can be used here, before hours of work: weights, checksum, loading, features of a fixed tile.

    python scripts/check_encoders.py --config config/config.yaml
    python scripts/check_encoders.py --encoders all --weights resources/weights

Prints one line an encoder (ok, missing or broken) and what to do about those that are not ok. Ends with 1 if an encoder
that was named, by the config or here, is not ok; with `all`, only if one is broken. Uses no network and no GPU.
"""

import argparse
import logging
from pathlib import Path

import yaml

from isoslide import cli, config, readiness, registry


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", nargs="+", help="check the encoders that these settings name; later files win")
    what.add_argument("--encoders", nargs="+", help="ids in the registry, timm:NAME, trident:NAME, or all")
    parser.add_argument("--registry", default="resources/encoders.yaml", help="YAML file of encoders")
    parser.add_argument("--weights", default="resources/weights", help="folder of weights, where no config tells")
    parser.add_argument("--schema", default="workflow/schemas/config.schema.yaml", help="schema of the config")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    names, weights = args.encoders, args.weights
    try:
        if args.config:
            files = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in args.config]
            settings = config.complete({key: value for file in files for key, value in file.items()}, args.schema)
            names = [name for name in settings["encoders"] if name not in settings["import"]]
            weights = settings["weights"]
        known = registry.load(args.registry, names, weights)
    except (config.ConfigError, registry.RegistryError, OSError) as error:
        cli.fail(str(error))
    everything = names == ["all"]
    chosen = list(known) if everything else names
    if unknown := [name for name in chosen if name not in known]:
        cli.fail(
            f"no encoder {unknown[0]!r} in {args.registry}: use one of {sorted(known)}, timm:NAME, trident:NAME or all"
        )
    rows = [readiness.check(known[name], Path(weights)) for name in chosen]
    print(readiness.table(rows))
    wrong = (readiness.BROKEN,) if everything else (readiness.BROKEN, readiness.MISSING)
    if any(row.state in wrong for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
