"""Isoslide: whole-slide images to task models whose predictions hold across scanners, with a report that proves it.

snakemake --cores 4            everything, up to the report
snakemake --cores 4 features   up to a stage: checks tissue registrations tiles features
                               splits models predictions evaluations report heatmaps exports;
                               apply: scores of new slides
snakemake -n                   what would run, and why
"""

from snakemake.utils import min_version

min_version("9.20")


# A file given with --configfile that names a sheet stands alone; one that does not is laid over the default.
if "sheet" not in config:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


# In the order in which the stages run.
include: "workflow/rules/common.smk"
include: "workflow/rules/lookups.smk"
include: "workflow/rules/demo.smk"
include: "workflow/rules/status.smk"
include: "workflow/rules/checks.smk"
include: "workflow/rules/tissue.smk"
include: "workflow/rules/registrations.smk"
include: "workflow/rules/tiles.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/splits.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/predictions.smk"
include: "workflow/rules/evaluations.smk"
include: "workflow/rules/heatmaps.smk"
include: "workflow/rules/exports.smk"
include: "workflow/rules/applications.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "results/report/index.html",
        with_slides("results/checks/mpp.svg", "results/tissue/contact_sheet.html"),


rule checks:
    """Stage: what each scan is, and whether it can be used."""
    input:
        with_slides("results/status/checks.tsv", "results/checks/mpp.svg"),


rule tissue:
    """Stage: tissue outlines."""
    input:
        with_slides("results/status/tissue.tsv", "results/tissue/contact_sheet.html"),


rule registrations:
    """Stage: scans of one specimen laid onto each other."""
    input:
        with_slides("results/status/registrations.tsv"),


rule tiles:
    """Stage: the grid of tiles of every scan."""
    input:
        expand("results/status/tiles/{tile}.tsv", tile=TILES),


rule features:
    """Stage: features of every encoder."""
    input:
        expand("results/status/features/{encoder}.tsv", encoder=ENCODERS),


rule splits:
    """Stage: folds of every task."""
    input:
        expand("results/splits/{task}.tsv", task=TASKS),


rule models:
    """Stage: task models, every arm, fold and seed."""
    input:
        expand(
            "results/models/{task}/{encoder}/{arm}/models.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),


rule predictions:
    """Stage: scores of the test and tuning scans."""
    input:
        expand(
            "results/predictions/{task}/{encoder}/{arm}.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),


rule evaluations:
    """Stage: metrics with intervals, arms compared with the control, and the scanner in features and embeddings."""
    input:
        expand(
            "results/evaluations/{task}/{encoder}/metrics.tsv",
            task=TASKS,
            encoder=ENCODERS,
        ),
        expand("results/evaluations/features/{encoder}.tsv", encoder=ENCODERS),
        expand("results/evaluations/metadata/{task}.tsv", task=TASKS),
        expand(
            "results/evaluations/embeddings/{task}/{encoder}/{arm}.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),


rule heatmaps:
    """Stage: what the models see in the scans named in the config, and the scans of a specimen side by side."""
    input:
        expand(
            "results/heatmaps/{task}/{encoder}/{arm}/status.tsv",
            task=TASKS,
            encoder=NATIVE,
            arm=ARMS,
        ),
        expand(
            "results/scanner_pairs/{task}/{encoder}/status.tsv",
            task=TASKS,
            encoder=NATIVE,
        ),
        ["results/viewer/status.tsv"] if NATIVE else [],


rule exports:
    """Stage: model folders that score new slides elsewhere."""
    input:
        expand(
            "results/exports/{task}/{encoder}/{arm}/card.json",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),


rule apply:
    """Stage: scores of the scans by the model folders that the config names under `apply`."""
    input:
        expand("results/applied/{application}.tsv", application=CARDS),


# Named `report` on the command line too: the page, not snakemake's own report.
rule report:
    """Stage: the page that people read."""
    input:
        "results/report/index.html",
