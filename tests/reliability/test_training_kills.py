"""Training that is killed and started again ends with the bytes of an undisturbed run."""

import json
import multiprocessing
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from toy_cohort import TRAINING, train, write_cohort

from isoslide import atomic, resuming

FORK = multiprocessing.get_context("fork")  # the child has everything imported: a kill hits the work
SHORT = {"steps": 240, "checkpoint_every": 6, "seeds": 2}


@pytest.fixture(autouse=True)
def _every_checkpoint(monkeypatch):
    monkeypatch.setattr(resuming, "EVERY_S", 0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    return folder


def results(folder):
    """Content of every file, without the names of the folders in it."""
    files = (path for path in folder.iterdir() if not atomic.TEMPORARY.match(path.name))
    return {path.name: path.read_bytes().replace(b"/killed/", b"/whole/") for path in files}


def begin(folder, name, changes):
    process = FORK.Process(target=train, args=(folder,), kwargs={"results": name, **changes})
    process.start()
    return process


def written(path):
    """Step of the state that is kept, 0 if there is none."""
    return resuming._read(path, with_tensors=False)[0].get("step", 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimiser": "adamw_cosine", "learning_rate": 0.003, "patience": 9, "precision": "bfloat16"},
    ],
)
def test_killed_five_times(cohort, changes):
    changes = SHORT | changes
    train(cohort, results="whole", **changes)
    path, rng = cohort / "killed" / resuming.NAME, np.random.default_rng(0)
    hits = 0
    for target in np.sort(rng.integers(6, 200, 5)):
        process = begin(cohort, "killed", changes)
        while written(path) < target and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        hits += process.is_alive()
        process.kill()
        process.join()
    assert hits >= 3
    train(cohort, results="killed", **changes)
    assert results(cohort / "killed") == results(cohort / "whole")
    for name in ("whole", "killed"):
        shutil.rmtree(cohort / name)


def train_until(monkeypatch, step, folder, **changes):
    """Train, and die once the state after a step is kept."""
    save = resuming.File.save

    def save_and_die(self, run, now):
        save(self, run, now)
        if now == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resuming.File, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(folder, results="killed", **SHORT, **changes)


@pytest.mark.parametrize("step", [60, 240])
def test_stopped_at_a_checkpoint(cohort, monkeypatch, step, tmp_path):
    """Also after the last: then only the models' files were missing."""
    shutil.copytree(cohort, tmp_path, dirs_exist_ok=True)
    train(tmp_path, results="whole", **SHORT)
    train_until(monkeypatch, step, tmp_path)
    assert written(tmp_path / "killed" / resuming.NAME) == step
    train(tmp_path, results="killed", **SHORT)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_killed_while_the_models_are_written(cohort, monkeypatch):
    """Those written already train again with the others: alone, a model may differ in the last bit."""
    train(cohort, results="whole", **SHORT)
    write, count = atomic.write_json, [0]

    def write_three(path, value):
        count[0] += 1
        if count[0] > 3:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_json", write_three)
        with pytest.raises(KeyboardInterrupt):
            train(cohort, results="killed", **SHORT)
    assert len(list((cohort / "killed").glob("*.json"))) == 3
    train(cohort, results="killed", **SHORT)
    assert results(cohort / "killed") == results(cohort / "whole")


def test_a_state_of_other_models_is_ignored(cohort, monkeypatch, tmp_path):
    shutil.copytree(cohort, tmp_path, dirs_exist_ok=True)
    train_until(monkeypatch, 60, tmp_path, learning_rate=0.02)
    train(tmp_path, results="whole", **SHORT)
    train(tmp_path, results="killed", **SHORT)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_file_that_is_not_ours_is_ignored(cohort, content, tmp_path):
    shutil.copytree(cohort, tmp_path, dirs_exist_ok=True)
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / resuming.NAME
    if content is None:
        save_file({"a": np.zeros(1)}, path, {"values": json.dumps({"keys": ["x"], "step": 3})})
    else:
        path.write_bytes(content)
    train(tmp_path, steps=TRAINING["steps"])
    assert not path.exists()
