"""What would run, and what is refused before anything runs: `snakemake -n` as a user types it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from isoslide import model_folder as card_facts
from isoslide import registry

ROOT = Path(__file__).resolve().parents[2]


def snakemake(*arguments, folder):
    """Run snakemake in a folder that holds its own config/, beside nothing else of the repository."""
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def job_counts(text):
    """{rule: jobs} of the last job table that snakemake prints."""
    table = text.rsplit("Job stats:", 1)[1]
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}


def overlay(folder, **changes):
    path = folder / "over.yaml"
    path.write_text(yaml.safe_dump(changes))
    return ["--configfile", str(ROOT / "config/config.yaml"), str(path)]


def copy_sheet(folder, edit):
    """The demo's sheet, changed; under its usual path, so that the default configuration finds it."""
    (folder / "config").mkdir()
    shutil.copy(ROOT / "config/config.yaml", folder / "config")
    table = pd.read_csv(ROOT / "config/slides.tsv", sep="\t", dtype=str, keep_default_na=False)
    edit(table).to_csv(folder / "config/slides.tsv", sep="\t", index=False)


def test_jobs_of_the_demo(tmp_path):
    copy_sheet(tmp_path, lambda table: table)
    done = snakemake("-n", "--quiet", "rules", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    n_batches = counts["check_slides"]
    assert {counts[name] for name in ("segment_tissue", "register_scans", "tile_scans", "extract_features")} == {
        n_batches
    }
    assert (counts["make_demo"], counts["make_splits"]) == (1, 2)
    assert (counts["train_models"], counts["predict_scans"]) == (8, 8)  # two tasks, four arms, one encoder
    assert counts["evaluate_predictions"] == 2
    assert counts["write_report"] == 1


def test_exports_read_the_features_once_for_all_arms(tmp_path):
    """Two tasks, four arms, and one with features of its own."""
    copy_sheet(tmp_path, lambda table: table)
    arms = {"normalised": {"sampler": "paired", "stain": "macenko"}}
    done = snakemake("-n", "exports", "--quiet", "rules", *overlay(tmp_path, arms=arms), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    assert counts["export_models"] == counts["train_models"] == 10
    assert counts["summarise_features"] == 2
    assert counts["evaluate_predictions"] == 2
    assert "write_report" not in counts


def test_more_encoders_share_tiles_of_the_same_view(tmp_path):
    copy_sheet(tmp_path, lambda table: table)
    encoders = ["efficientnet_lite0", "h_optimus_0", "virchow2", "uni"]
    more = overlay(tmp_path, encoders=encoders, weights="w")
    lines = lines_of_error(snakemake("-n", *more, folder=tmp_path))
    assert re.match(r"error: encoder \w+: no weights at w/\w+/[\w.]+: ask for access at https://hug", lines[-1])
    early = snakemake("tiles", "splits", "-n", "--quiet", "rules", *more, folder=tmp_path)
    assert early.returncode == 0, early.stderr
    for name in ("h_optimus_0/pytorch_model.bin", "virchow2/model.safetensors", "uni/pytorch_model.bin"):
        (tmp_path / "w" / name).parent.mkdir(parents=True)
        (tmp_path / "w" / name).touch()
    done = snakemake("-n", "--quiet", "rules", *more, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    assert counts["tile_scans"] == 2 * counts["check_slides"]  # 224 px and 256 px
    assert counts["extract_features"] == 4 * counts["check_slides"]
    assert counts["train_models"] == 4 * 8


def test_an_arm_with_stain_adds_features_and_nothing_before_them(tmp_path):
    copy_sheet(tmp_path, lambda table: table)
    arms = {"normalised": {"sampler": "paired", "stain": "macenko"}}
    done = snakemake("-n", "--quiet", "rules", *overlay(tmp_path, arms=arms), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    assert counts["extract_features"] == 2 * counts["check_slides"]
    assert counts["tile_scans"] == counts["check_slides"]
    assert counts["train_models"] == 10  # two tasks, five arms


def test_encoders_of_one_view_share_a_job_where_that_is_asked_for(tmp_path):
    """uni and gpfm want 224 px at 0.5 µm, conch_v1_5 512 px; the other stages see no difference."""
    copy_sheet(tmp_path, lambda table: table)
    for name in ("uni", "gpfm", "conch_v1_5"):
        place = tmp_path / "weights" / registry.load(ROOT / "resources/encoders.yaml")[name].weights
        place.parent.mkdir(parents=True)
        place.touch()
    settings = {"encoders": ["uni", "gpfm", "conch_v1_5"], "weights": str(tmp_path / "weights")}
    counts = []
    for share in (False, True):
        options = overlay(tmp_path, share_tiles=share, **settings)
        done = snakemake("-n", "--quiet", "rules", *options, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        counts.append(job_counts(done.stdout + done.stderr))
    alone, together = counts
    n = alone["check_slides"]
    assert (alone.pop("extract_features"), together.pop("extract_features")) == (3 * n, n)
    assert together.pop("extract_together") == n
    assert alone.pop("total") - together.pop("total") == n
    assert alone == together


def lines_of_error(done):
    assert done.returncode == 1
    return [line for line in done.stderr.splitlines() if line.strip()]


BAD_SHEETS = {
    "duplicate scan": (
        lambda table: pd.concat([table, table.iloc[[3]]]),
        r"error: config/slides.tsv lines 5, \d+: scan '\S+' stands 2 times: give every scan an id of its own",
    ),
    "missing path": (
        lambda table: table.assign(path=["/gone/a.svs", *table["path"][1:]]),
        r"error: config/slides.tsv line 2: scan '\S+': no file '/gone/a.svs': correct the path, or",
    ),
    "nothing left": (
        lambda table: table.assign(exclude="pilot"),
        r"error: config/slides.tsv: all \d+ scans are excluded: empty the column 'exclude' of those to use",
    ),
    "absent label": (
        lambda table: table.drop(columns="response"),
        r"error: config tasks.response.label: no column 'response' in config/slides.tsv; it has .*: name one of them",
    ),
}


@pytest.mark.parametrize("name", BAD_SHEETS)
def test_a_bad_sheet_is_refused_in_one_line(tmp_path, name):
    edit, message = BAD_SHEETS[name]
    copy_sheet(tmp_path, edit)
    lines = lines_of_error(snakemake("-n", folder=tmp_path))
    assert len(lines) == 1
    assert re.match(message, lines[0])


def test_an_arm_of_a_scanner_that_is_not_in_the_sheet_is_refused_before_any_job(tmp_path):
    copy_sheet(tmp_path, lambda table: table)
    more = overlay(tmp_path, arms={"one": {"sampler": "single", "scanner": "Aperoi"}})
    lines = lines_of_error(snakemake("-n", *more, folder=tmp_path))
    scanners = r"\['A', 'B', 'C', 'D'\]"
    assert re.fullmatch(
        f"error: config arms.one.scanner: no scan of 'Aperoi' in the sheet: use one of {scanners}", *lines
    )


def test_an_unknown_key_is_refused_in_one_line(tmp_path):
    copy_sheet(tmp_path, lambda table: table)
    lines = lines_of_error(snakemake("-n", *overlay(tmp_path, tisue={"um_per_px": 4}), folder=tmp_path))
    assert len(lines) == 1
    assert re.match(r"error: config tisue: unknown key \(value .*\): use one of \[.*'tissue'", lines[0])


def test_slurm_profile_asks_for_what_the_rules_need(tmp_path):
    copy_sheet(tmp_path, lambda table: table)
    profile = ["--profile", str(ROOT / "workflow/profiles/slurm"), "--workflow-profile", "none"]
    done = snakemake("-n", "features", *profile, *overlay(tmp_path, device="cuda"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr)
    features = [job for job in jobs if job.startswith("rule extract_features")]
    others = [job for job in jobs if job.startswith(("rule check_slides", "rule segment_tissue"))]
    assert features
    assert all(re.search(r"resources:.*\bgpu=1\b", job) for job in features)
    assert others
    assert not any("gpu=" in job for job in others)
    assert all(re.search(r"resources:.*\bmem_mb=\d+.*\bruntime=\d+", job) for job in others)


def test_lint():
    done = snakemake("--lint", folder=ROOT)
    assert done.returncode == 0, done.stderr


def with_features(folder):
    """The demo's sheet without paths, and one features file: enough for a plan."""
    copy_sheet(folder, lambda table: table.drop(columns="path"))
    table = pd.read_csv(folder / "config/slides.tsv", sep="\t", dtype=str)
    (folder / f"{table.loc[0, 'scan']}.npz").touch()
    return {"mine": {"path": "{scan}.npz"}}


def test_imported_features_need_no_slides(tmp_path):
    over = overlay(tmp_path, encoders=["mine"], **{"import": with_features(tmp_path)})
    done = snakemake("-n", "--quiet", "rules", *over, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    slide_rules = {"make_demo", "check_slides", "segment_tissue", "register_scans", "tile_scans", "extract_features"}
    assert not slide_rules & set(counts)
    assert counts["train_models"] == 8
    assert counts["import_features"] > 1  # a job a batch


def test_imported_features_beside_an_encoder_and_with_registrations(tmp_path):
    mine = with_features(tmp_path)
    registered = {"mine": mine["mine"] | {"pairing": "registered"}}
    shutil.copy(ROOT / "config/slides.tsv", tmp_path / "config")
    over = overlay(tmp_path, encoders=["mine"], **{"import": registered})
    counts = job_counts("".join(plan_of(snakemake("-n", "--quiet", "rules", *over, folder=tmp_path))))
    assert counts["register_scans"] == counts["import_features"]
    assert "tile_scans" not in counts
    over = overlay(tmp_path, encoders=["efficientnet_lite0", "mine"], **{"import": mine})
    counts = job_counts("".join(plan_of(snakemake("-n", "--quiet", "rules", *over, folder=tmp_path))))
    assert counts["extract_features"] == counts["import_features"] == counts["tile_scans"]


def plan_of(done):
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


BAD_IMPORTS = {
    "no match": (
        {"path": "features/{scan}.h5"},
        {},
        r"error: config import.mine.path: none of the \d+ scans has a file. S",
    ),
    "no column": (
        {"path": "{slide}.h5"},
        {},
        r"error: config import.mine.path: no column 'slide' in the sheet: use one",
    ),
    "name taken": (
        {"path": "{scan}.npz"},
        {"name": "uni"},
        r"error: config import.uni: the registry has an encoder of",
    ),
    "no slides": (
        {"path": "{scan}.npz", "pairing": "registered"},
        {},
        r"error: config/slides.tsv line 2: scan '\S+' has no path: fill the column 'path'; it may be empty only where",
    ),
}


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_a_bad_import_is_refused_in_one_line(tmp_path, name):
    block, more, message = BAD_IMPORTS[name]
    with_features(tmp_path)
    own = more.get("name", "mine")
    lines = lines_of_error(
        snakemake("-n", *overlay(tmp_path, encoders=[own], **{"import": {own: block}}), folder=tmp_path)
    )
    assert len(lines) == 1
    assert re.match(message, lines[0])


def test_training_on_a_gpu_asks_for_one(tmp_path):
    """Models alone: encoders stay where `device` says."""
    copy_sheet(tmp_path, lambda table: table)
    changes = overlay(tmp_path, training={"device": "cuda"})
    done = snakemake("--cores", "2", "-n", "models", *changes, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr)
    assert any(job.startswith("rule train_models") for job in jobs)
    for job in jobs:
        assert (re.search(r"resources:.*\bgpu=1\b", job) is not None) == job.startswith("rule train_models")


def test_trident_and_its_weights_are_missed_before_the_first_job(tmp_path, monkeypatch):
    copy_sheet(tmp_path, lambda table: table)
    changes = overlay(tmp_path, tissue={"method": "trident:hest"}, weights="w", device="cuda")
    arguments = ("--cores", "2", "-n", "tissue", *changes)
    (line,) = lines_of_error(snakemake(*arguments, folder=tmp_path))[-1:]
    assert re.match(
        r"error: config tissue.method 'trident:hest': no weights at w/trident/hest/deep.*: hf download", line
    )
    (tmp_path / "w/trident/hest").mkdir(parents=True)
    (tmp_path / "w/trident/hest/deeplabv3_seg_v4.ckpt").touch()
    (line,) = lines_of_error(snakemake(*arguments, folder=tmp_path))[-1:]
    assert re.match(
        r"error: config tissue.method 'trident:hest': TRIDENT is not installed for this: run .* conda", line
    )
    (tmp_path / "site/trident").mkdir(parents=True)
    (tmp_path / "site/trident/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = snakemake(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr)
    tissue = [job for job in jobs if job.startswith("rule segment_tissue")]
    assert tissue
    assert all(re.search(r"resources:.*\bgpu=1\b", job) for job in tissue)
    monkeypatch.delenv("PYTHONPATH")
    assert snakemake("--cores", "2", "-n", "checks", *changes, folder=tmp_path).returncode == 0


def model_folder_of(folder, encoder="efficientnet_lite0", imported=False, **changes):
    """A model folder as the plan sees it: a card, and files that stand for its models."""
    path = folder / "model"
    path.mkdir()
    (path / "range.safetensors").touch()
    (path / "a.safetensors").touch()
    facts = card_facts.imported_facts(encoder)
    if not imported:
        facts = card_facts.entry_facts(registry.load(ROOT / "resources/encoders.yaml")[encoder])
    reading = {"reading": {"icc": "ignore", "downsampling": "fast"}, "tiles": {"overlap": 0}}
    card = {"format": card_facts.FORMAT, "models": [{"file": "a.safetensors"}], "preprocessing": reading}
    card["encoder"] = facts | {"weights_sha256": "", "stain": ""} | changes
    (path / "card.json").write_text(json.dumps(card))
    return path


def new_slides(folder, **changes):
    """Three slides and the example of a configuration for new slides, with changes; the arguments of snakemake."""
    lines = ["scan\tpath\tscanner"]
    for scan in "abc":
        (folder / f"{scan}.svs").touch()
        lines.append(f"{scan}\t{scan}.svs\tX")
    (folder / "slides.tsv").write_text("\n".join(lines) + "\n")
    config = yaml.safe_load((ROOT / "config/predict.yaml").read_text()) | {"apply": {"response": "model"}} | changes
    (folder / "predict.yaml").write_text(yaml.safe_dump(config))
    return ["-n", "apply", "--quiet", "rules", "--configfile", str(folder / "predict.yaml")]


def test_new_slides_go_through_the_same_rules(tmp_path):
    """Three slides are one batch; no label, task or arm, and the encoder is that of the card."""
    model_folder_of(tmp_path)
    done = snakemake(*new_slides(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    slides = ("check_slides", "segment_tissue", "register_scans", "tile_scans", "extract_features", "apply_models")
    assert counts == dict.fromkeys(slides, 1) | {"collect_status": 4, "apply": 1, "total": 11}


def test_models_on_normalised_tiles_want_such_features(tmp_path):
    model_folder_of(tmp_path, stain="macenko")
    arguments = [one for one in new_slides(tmp_path) if one not in ("--quiet", "rules")]
    done = snakemake(*arguments, "-p", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--features results/status/features/efficientnet_lite0+macenko.tsv" in done.stdout + done.stderr


def test_new_scans_with_imported_features(tmp_path):
    model_folder_of(tmp_path, encoder="mine", imported=True)
    (tmp_path / "a.npz").touch()
    done = snakemake(*new_slides(tmp_path, **{"import": {"mine": {"path": "{scan}.npz"}}}), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = job_counts(done.stdout + done.stderr)
    assert counts == {"import_features": 1, "collect_status": 1, "apply_models": 1, "apply": 1, "total": 4}


BAD_APPLICATIONS = {
    "no folder": ({"apply": {"response": "gone"}}, {}, r"error: model folder gone: no such folder: correct the path"),
    "no card": ({"apply": {"response": "."}}, {}, r"error: model folder \.: no card.json: name a folder that the targ"),
    "other encoder": (
        {"encoders": ["uni"]},
        {},
        r"error: config apply.response: the models of model were trained on encoder efficientnet_lite0, the config has",
    ),
    "other tiles": ({}, {"tile_px": 256}, r"error: model folder model: encoder efficientnet_lite0 had tile_px 256 in "),
    "other reading": (
        {"reading": {"icc": "srgb"}},
        {},
        r"error: model folder model: trained with reading.icc 'ignore'",
    ),
    "no imported features": ({}, {"imported": True}, r"error: config apply.response: the models of model were trained"),
    "nothing to do": (
        {"apply": {}},
        {},
        r"error: config encoders: missing: name encoders of resources/encoders.yaml, or",
    ),
}


@pytest.mark.parametrize("name", BAD_APPLICATIONS)
def test_a_folder_that_does_not_fit_is_refused_before_any_job(tmp_path, name):
    changes, facts, message = BAD_APPLICATIONS[name]
    model_folder_of(tmp_path, **facts)
    lines = lines_of_error(snakemake(*new_slides(tmp_path, **changes), folder=tmp_path))
    assert len(lines) == 1
    assert re.match(message, lines[0])


def test_a_trained_cohort_is_not_written_over(tmp_path):
    model_folder_of(tmp_path)
    (tmp_path / "results/models").mkdir(parents=True)
    lines = lines_of_error(snakemake(*new_slides(tmp_path), folder=tmp_path))
    assert len(lines) == 1
    assert "results/ holds a trained cohort, whose tables a run on other slides would overwrite" in lines[0]
