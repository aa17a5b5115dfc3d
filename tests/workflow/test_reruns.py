"""What runs again when: after a whole run of trivial jobs, a change must make a dry run plan exactly the right jobs."""

import re
import shutil
import subprocess
from argparse import Namespace

import pytest
import yaml

import benchmark_plan

N_BATCHES, N_ENCODERS, N_TASKS, N_ARMS = 4, 2, 2, 2
N_MODELS = N_TASKS * N_ENCODERS * N_ARMS
REPORT = {"write_report": 1, "all": 1}
EVALUATED = {"evaluate_predictions": N_TASKS * N_ENCODERS} | REPORT
TRAINED = {"train_models": N_MODELS, "embed_tiles": N_MODELS, "predict_scans": N_MODELS} | EVALUATED
FEATURES = {"extract_features": N_BATCHES * N_ENCODERS, "evaluate_features": N_ENCODERS} | TRAINED
PROFILE = ["--workflow-profile", "workflow/profiles/workstation"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a cohort of four batches, two encoders, tasks and arms went through; nobody changes it."""
    folder = tmp_path_factory.mktemp("reruns") / "first"
    benchmark_plan.copy_workflow(folder)
    benchmark_plan.write_weights(folder, ["uni", "uni2_h", "gpfm", "virchow2"])
    benchmark_plan.write_sheet(folder, 24, 12)
    settings = Namespace(folder=folder, encoders=["uni", "uni2_h"], tasks=2, arms=2, seeds=1, batch_size=8)
    benchmark_plan.write_config(settings)
    snakemake(folder, "--cores", "4", "--quiet", "all", "--resources", "gpu=4")
    return folder


@pytest.fixture
def clone(finished, tmp_path):
    """A copy of the finished folder in another place, in which every file is new."""
    return shutil.copytree(finished, tmp_path / "clone", copy_function=shutil.copyfile)


def snakemake(folder, *arguments):
    done = subprocess.run(["snakemake", *PROFILE, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(folder, *arguments):
    """{rule: jobs} of a dry run, without their sum; empty when there is nothing to be done."""
    text = snakemake(folder, *arguments, "-n", "--quiet", "rules")
    if "Nothing to be done" in text:
        return {}
    table = re.findall(r"^(\w+) +(\d+)$", text.rsplit("Job stats:", 1)[1], flags=re.MULTILINE)
    return {name: int(n) for name, n in table if name != "total"}


def configure(folder, change):
    path = folder / "config/config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def collected(*stages):
    """The tables of stages: of features one per encoder."""
    return {"collect_status": sum(N_ENCODERS if stage == "features" else 1 for stage in stages)}


def test_a_fresh_clone_with_the_results_copied_runs_nothing(clone):
    assert planned(clone) == {}


def test_results_without_snakemakes_records_count_as_old(clone):
    """Then only the times of files are left, and a clone's scripts are new; --touch accepts the results."""
    shutil.rmtree(clone / ".snakemake")
    for path in clone.glob("scripts/*.py"):
        path.touch()
    assert planned(clone)["check_slides"] == N_BATCHES
    snakemake(clone, "--touch", "--cores", "1", "--quiet", "all")
    assert planned(clone) == {}


COMMENT = "\n# a comment, as a formatter might move it\n"
EDITS = {
    "scripts/isoslide/tissue.py": {
        "segment_tissue": N_BATCHES,
        "draw_contact_sheet": 1,
        "register_scans": N_BATCHES,
        "tile_scans": N_BATCHES,
        "evaluate_metadata": N_TASKS,
    }
    | collected("tissue", "registrations", "tiles", "features")
    | FEATURES,
    "scripts/isoslide/tile_encoder.py": collected("features") | FEATURES,
    "scripts/isoslide/training.py": TRAINED,
    "scripts/predict_scans.py": TRAINED | {"train_models": 0, "embed_tiles": 0},
    "scripts/isoslide/weighted.py": EVALUATED | {"evaluate_metadata": N_TASKS},
    "scripts/isoslide/sections.py": REPORT,
    "workflow/rules/tissue.smk": {},
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_runs_its_stage_and_what_follows(clone, name):
    """Even an edit that changes no number: the jobs start, find their content keys unchanged, and write nothing."""
    with open(clone / name, "a") as file:
        file.write(COMMENT)
    assert planned(clone) == {rule: n for rule, n in EDITS[name].items() if n}


def half(jobs):
    """The jobs of one of two arms or encoders, whose evaluations and page are whole."""
    return jobs | dict.fromkeys(("train_models", "embed_tiles", "predict_scans"), N_MODELS // 2)


CHANGES = {
    "the weight of one arm": (lambda config: config["arms"]["robust1"].update(score_weight=3), half(TRAINED)),
    "one more arm": (lambda config: config["arms"].update(extra={"sampler": "mixed"}), half(TRAINED)),
    "steps of training": (lambda config: config["training"].update(steps=10), TRAINED),
    "resamples": (
        lambda config: config.update(evaluation={"resamples": 100}),
        EVALUATED | {"evaluate_features": N_ENCODERS, "evaluate_metadata": N_TASKS, "embed_tiles": N_MODELS},
    ),
    "how much of a tile is tissue": (
        lambda config: config.update(tiles={"min_tissue": 0.4}),
        {"tile_scans": N_BATCHES, "evaluate_metadata": N_TASKS} | collected("tiles", "features") | FEATURES,
    ),
    "one more encoder of the same view": (
        lambda config: config["encoders"].append("gpfm"),
        {
            "extract_features": N_BATCHES,
            "collect_status": 1,
            "evaluate_features": 1,
            "train_models": N_MODELS // 2,
            "embed_tiles": N_MODELS // 2,
            "predict_scans": N_MODELS // 2,
            "evaluate_predictions": N_TASKS,
        }
        | REPORT,
    ),
    "one more encoder of another view": (
        lambda config: config["encoders"].append("virchow2"),
        {
            "tile_scans": N_BATCHES,
            "extract_features": N_BATCHES,
            "collect_status": 2,
            "evaluate_features": 1,
            "train_models": N_MODELS // 2,
            "embed_tiles": N_MODELS // 2,
            "predict_scans": N_MODELS // 2,
            "evaluate_predictions": N_TASKS,
        }
        | REPORT,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_runs_what_reads_it(clone, name):
    change, jobs = CHANGES[name]
    configure(clone, change)
    assert planned(clone) == jobs


def edit_sheet(folder, edit):
    path = folder / "config/slides.tsv"
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def test_a_new_scan_runs_its_batch_and_the_models(clone):
    edit_sheet(clone, lambda lines: [*lines, lines[-1].replace("_", "-new_")])
    line = (clone / "config/slides.tsv").read_text().splitlines()[-1].split("\t")
    (clone / line[1]).touch()
    stages = dict.fromkeys(("check_slides", "segment_tissue", "register_scans", "tile_scans"), 1)
    pictures = {"draw_mpp": 1, "draw_contact_sheet": 1, "evaluate_metadata": N_TASKS, "make_splits": N_TASKS}
    tables = collected("checks", "tissue", "registrations", "tiles", "features")
    assert planned(clone) == stages | pictures | tables | FEATURES | {"extract_features": N_ENCODERS}


def test_a_corrected_label_leaves_the_slides_alone(clone):
    """Folds and models of the label's task; and what reads the whole sheet."""

    def correct(lines):
        patient = lines[1].split("\t")[4]
        return [line.replace("\tno\t", "\tyes\t") if f"\t{patient}\t" in line else line for line in lines]

    edit_sheet(clone, correct)
    jobs = {"make_splits": 1} | dict.fromkeys(("train_models", "embed_tiles", "predict_scans"), N_MODELS // 2)
    jobs |= {"evaluate_predictions": N_ENCODERS, "evaluate_features": N_ENCODERS, "evaluate_metadata": N_TASKS}
    assert planned(clone) == jobs | REPORT


def test_the_order_of_the_sheet_does_not_matter(clone):
    """But for what reads the whole sheet, and is quick."""
    edit_sheet(clone, lambda lines: [lines[0], *sorted(lines[1:], reverse=True)])
    assert planned(clone) == {"evaluate_features": N_ENCODERS, "evaluate_metadata": N_TASKS} | REPORT


STAGES = {
    "redo a stage and what follows": (["-R", "train_models"], TRAINED),
    "redo one stage only": (["-R", "train_models", "--until", "train_models"], {"train_models": N_MODELS}),
    "up to a rule": (["-R", "segment_tissue", "--until", "segment_tissue"], {"segment_tissue": N_BATCHES}),
    "one batch of one encoder": (
        ["results/status/features/uni/b2.tsv", "-R", "extract_features"],
        {"extract_features": 1},
    ),
    "one encoder": (
        ["results/status/features/uni.tsv", "-R", "extract_features"],
        {"extract_features": 4, "collect_status": 1},
    ),
    "one arm": (["results/models/survival/uni/robust1/models.tsv", "-R", "train_models"], {"train_models": 1}),
}


@pytest.mark.parametrize("name", STAGES)
def test_single_stages_by_name(finished, name):
    arguments, jobs = STAGES[name]
    assert planned(finished, *arguments) == jobs


def test_records_of_500_scans(tmp_path):
    """Complaint L7: Snakemake keeps a file per output, and inodes are counted; there are batches, not scans."""
    folder = tmp_path / "plan"
    benchmark_plan.copy_workflow(folder)
    benchmark_plan.write_weights(folder, ["uni", "conch_v1_5"])
    benchmark_plan.write_sheet(folder, 500, 150)
    settings = Namespace(folder=folder, encoders=["uni", "conch_v1_5"], tasks=2, arms=6, seeds=5, batch_size=None)
    benchmark_plan.write_config(settings)
    text = snakemake(folder, "-n")
    outputs = re.findall(r"^    output: (.*)$", text, flags=re.MULTILINE)
    assert 300 < sum(line.count(", ") + 1 for line in outputs) < 1000
