"""Fetch the weights of encoders from the hub, once, before jobs run without a network.

    HF_TOKEN=... python scripts/fetch_weights.py --encoders uni virchow2 --weights resources/weights

Gated models need a token of an account that was granted access; it is read from the variable HF_TOKEN alone, and never
written or shown. Each file comes at the revision that the registry pins, is compared with its checksum there, and is
recorded in a manifest beside it, which jobs check. What is there already is kept; a connection that breaks is taken up
where it was; a file is there whole or not at all.
"""

import argparse
import logging
import os

from isoslide import cli, registry, weights


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--encoders", nargs="+", required=True, help="ids in the registry, timm:NAME or trident:NAME")
    parser.add_argument("--registry", default="resources/encoders.yaml", help="YAML file of encoders")
    parser.add_argument("--weights", default="resources/weights", help="folder of weights")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the client is imported
    from isoslide import hub

    for name in ("httpx", "httpx2", "huggingface_hub"):  # every request, and each retry twice
        logging.getLogger(name).setLevel(logging.ERROR)

    try:
        known = registry.load(args.registry, [name for name in args.encoders if name.startswith(registry.TRIDENT)])
    except registry.RegistryError as error:
        cli.fail(str(error))
    token = os.environ.get("HF_TOKEN")
    failures = []
    for name in args.encoders:
        if name not in known and not name.startswith(registry.TIMM):
            cli.fail(f"no encoder {name!r} in {args.registry}: use one of {sorted(known)}, timm:NAME or trident:NAME")
        try:
            entry = known[name] if name in known else hub.timm_entry(name, args.weights, token)
            if not entry.hub:
                logging.info("%s: comes with a package, or is not on the hub: nothing to fetch", name)
                continue
            found = hub.fetch(entry, args.weights, token)
        except (weights.EncoderError, registry.RegistryError) as error:
            logging.error("%s", error)
            failures.append(name)
            continue
        logging.info("%s: %s at %s, SHA-256 %s", name, found["hub"], found["revision"], found["sha256"][:16])
    if failures:
        cli.fail(f"{len(failures)} of {len(args.encoders)} encoders were not fetched: {' '.join(failures)}")


if __name__ == "__main__":
    main()
