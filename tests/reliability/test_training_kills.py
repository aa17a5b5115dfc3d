"""Training that is killed and started again ends with the bytes of an undisturbed run."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from toy_cohort import TRAINING, train, write_cohort

from isoslide import atomic, resuming, steps

FORK = multiprocessing.get_context("fork")  # the child has everything imported: a kill hits the work
SHORT = {"steps": 240, "checkpoint_every": 6, "seeds": 2}
CALM = {}
ADAMW = {"optimiser": "adamw_cosine", "learning_rate": 0.003, "patience": 9, "precision": "bfloat16"}


@pytest.fixture(autouse=True)
def _every_checkpoint(monkeypatch):
    monkeypatch.setattr(resuming, "EVERY_S", 0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort, on a machine that repeats itself to the bit; elsewhere a killed run has nothing to be compared with."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    runs = []
    for changes in (CALM, ADAMW, CALM, ADAMW):
        train(folder, results="whole", **SHORT, **changes)
        runs.append(results(folder / "whole"))
        shutil.rmtree(folder / "whole")
    if runs[:2] != runs[2:]:
        pytest.skip("on this processor two undisturbed runs in a row end with different bits")
    return folder


@pytest.fixture
def own(cohort, tmp_path):
    """A copy of the cohort for one test."""
    shutil.copytree(cohort, tmp_path, dirs_exist_ok=True)
    return tmp_path


def results(folder):
    """Checksum of every file, without the names of the folders in it."""
    files = (path for path in folder.iterdir() if not atomic.TEMPORARY.match(path.name))
    return {
        path.name: hashlib.md5(path.read_bytes().replace(b"/killed/", b"/whole/")).hexdigest()[:8] for path in files
    }


def die_at(module, name, call):
    """Let a function kill the process without a word at its n-th call."""
    function, count = getattr(module, name), [0]

    def dying(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(module, name, dying)


def train_in_child(folder, module, name, call, changes):
    """Train in a process of its own that dies at the n-th call of a function; return whether it did."""

    def work():
        die_at(module, name, call)
        train(folder, results="killed", **changes)

    process = FORK.Process(target=work)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def written(path):
    """Step of the state that is kept, 0 if there is none."""
    return resuming._read(path, with_tensors=False)[0].get("step", 0)


@pytest.mark.parametrize("changes", [CALM, ADAMW])
def test_killed_five_times(own, changes):
    """In the middle of a step, and between the writing of a state and its renaming."""
    changes = SHORT | changes
    train(own, results="whole", **changes)
    rng, path = np.random.default_rng(0), own / "killed" / resuming.NAME
    reached = [0]
    for module, name, least, most in [
        (steps, "losses_of", 10, 45),
        (os, "replace", 3, 8),
        (steps, "losses_of", 10, 45),
        (os, "replace", 3, 8),
        (steps, "losses_of", 10, 45),
    ]:
        assert train_in_child(own, module, name, int(rng.integers(least, most)), changes)
        reached.append(written(path))
    assert reached == sorted(reached)
    assert 30 < reached[-1] < 240
    train(own, results="killed", **changes)
    assert results(own / "killed") == results(own / "whole")


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
def test_stopped_at_a_checkpoint(own, monkeypatch, step):
    """Also after the last: then only the models' files were missing."""
    train(own, results="whole", **SHORT)
    train_until(monkeypatch, step, own)
    assert written(own / "killed" / resuming.NAME) == step
    train(own, results="killed", **SHORT)
    assert results(own / "killed") == results(own / "whole")


def test_killed_while_the_models_are_written(own, monkeypatch):
    """Those written already train again with the others: alone, a model may differ in the last bit."""
    train(own, results="whole", **SHORT)
    write, count = atomic.write_json, [0]

    def write_three(path, value):
        count[0] += 1
        if count[0] > 3:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_json", write_three)
        with pytest.raises(KeyboardInterrupt):
            train(own, results="killed", **SHORT)
    assert len(list((own / "killed").glob("*.json"))) == 3
    train(own, results="killed", **SHORT)
    assert results(own / "killed") == results(own / "whole")


def test_a_state_of_other_models_is_ignored(own, monkeypatch):
    train_until(monkeypatch, 60, own, learning_rate=0.02)
    train(own, results="whole", **SHORT)
    train(own, results="killed", **SHORT)
    assert results(own / "killed") == results(own / "whole")


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_file_that_is_not_ours_is_ignored(own, content):
    (own / "models").mkdir()
    path = own / "models" / resuming.NAME
    if content is None:
        save_file({"a": np.zeros(1)}, path, {"values": json.dumps({"keys": ["x"], "step": 3})})
    else:
        path.write_bytes(content)
    train(own, steps=TRAINING["steps"])
    assert not path.exists()
