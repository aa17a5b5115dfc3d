"""What every stage needs: the checked configuration and sheet, encoders, arms, and batches of scans."""

import itertools
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(workflow.basedir, "scripts"))

from isoslide import (
    cli,
    imports,
    model_folder,
    presets,
    registry,
    segmenters,
    sheet,
    weights,
)
from isoslide import config as configuration
from snakemake.logging import logger


def at_base(path):
    """Path of a file of the repository, relative to the working directory, as it would be typed."""
    return os.path.relpath(os.path.join(workflow.basedir, path))


def scripts(name):
    """Path of a script or module; listed as input, so that an edit of it runs its stage again."""
    return at_base(os.path.join("scripts", name))


REGISTRY_FILE = at_base("resources/encoders.yaml")

try:
    GIVEN = config
    config = configuration.complete(
        config, os.path.join(workflow.basedir, "workflow/schemas/config.schema.yaml")
    )
    config, CARDS = model_folder.complete(config)
    IMPORTED = [name for name in config["encoders"] if name in config["import"]]
    NATIVE = [name for name in config["encoders"] if name not in IMPORTED]
    REGISTRY = registry.load(REGISTRY_FILE, NATIVE, config["weights"])
    configuration.check(config, REGISTRY)
    SHEET = sheet.read(config["sheet"])
    PAIRED = presets.paired_specimens(SHEET)
    config = presets.fill(config, GIVEN, PAIRED)
    model_folder.check(config, CARDS, REGISTRY)
    STAINED = configuration.stained(config) | model_folder.stained(CARDS)
    REGISTRY |= {name: REGISTRY[encoder] for name, encoder in STAINED.items()}
    REGISTERED = [n for n in IMPORTED if imports.needs_slides(config["import"][n])]
    USES_SLIDES = bool(NATIVE or REGISTERED)
    if (
        USES_SLIDES and workflow.is_main_process
    ):  # not in every job: it is a look at each slide on a shared disk
        sheet.check_paths(SHEET, config["sheet"])
    for name in IMPORTED:
        imports.check(name, config["import"][name], SHEET)
    configuration.check_sheet(config, SHEET)
except (
    configuration.ConfigError,
    model_folder.FolderError,
    registry.RegistryError,
    sheet.SheetError,
) as error:
    cli.fail(str(error))

if workflow.is_main_process and config["tasks"]:
    logger.info(presets.sentence(config, PAIRED))

SHEET = SHEET.sort_values("scan")  # so that the order of its rows starts no job
BATCHES = sheet.batches(SHEET, config.get("batch_size"))
ENCODERS = config["encoders"]
TILES = sorted({REGISTRY[encoder].tile for encoder in NATIVE})
TOGETHER = configuration.together(config, {name: REGISTRY[name] for name in NATIVE})
ALONE = [
    name
    for name in [*NATIVE, *STAINED]
    if name not in itertools.chain(*TOGETHER.values())
]
SEGMENTER = config["tissue"]["method"].startswith(segmenters.PREFIX)
TASKS = list(config["tasks"])
ARMS = list(config["arms"])


wildcard_constraints:
    batch=r"b\d+",
    tile=r"\d+px_[\d.]+um",
    encoder=r"[^/]+",
    task=r"[^/]+",
    arm=r"[^/]+",
