import threading

import h5py
import numpy as np
import pytest
import torch

from isoslide import layers, steps, stored_features

torch.set_num_threads(1)


@pytest.mark.parametrize("stored", [np.float16, np.float32])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_drawn_tiles_are_the_rows_again_and_again(stored, precision):
    features = np.random.default_rng(0).normal(size=(50, 7)).astype(stored)
    tiles = steps.Tiles(torch.from_numpy(features), torch.device("cpu"), steps.PRECISIONS[precision])
    for size in ((2, 3, 4), (1, 2, 5), (3, 3, 4)):
        rows = torch.randint(50, size)
        drawn = tiles.draw(rows)
        assert drawn.shape == (*size, 7)
        assert torch.equal(drawn, torch.from_numpy(features)[rows].float().to(steps.PRECISIONS[precision]))


class Batch:
    """As much of a batch as reading ahead looks at."""

    def __init__(self, rows):
        self.rows, self.valid = rows, np.ones(rows.shape, dtype=bool)


def in_files(folder, features):
    """The features of two scans in files that are not sorted by tile id."""
    parts = []
    for name, own in (("a", features[:20]), ("b", features[20:])):
        order = np.random.default_rng(1).permutation(len(own))
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = own[np.argsort(order)]
            parts.append(stored_features.locate(file, order))
    return stored_features.Stored(parts)


@pytest.mark.parametrize("aggregator", ["abmil", "transmil"])
def test_tiles_read_ahead_are_those_of_their_step(tmp_path, aggregator, monkeypatch):
    """Each batch gives its own rows, also when one is not drawn; a step reads nothing itself."""
    features = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float16)
    tiles = steps.Tiles(in_files(tmp_path, features), torch.device("cpu"), torch.float32)
    shape = layers.Shape(7, 2, width=8, aggregator=aggregator)
    rng = np.random.default_rng(2)
    batches = [Batch(rng.integers(50, size=(2, 3, 4))) for _ in range(6)]
    given = iter(batches)
    read = []
    whole = stored_features.Stored.__getitem__
    monkeypatch.setattr(
        stored_features.Stored, "__getitem__", lambda own, rows: read.append(threading.get_ident()) or whole(own, rows)
    )
    seen = []
    for number, batch in enumerate(steps.reading_ahead(given, tiles, shape, 5)):
        assert batch is batches[number]
        seen.append(number)
        if number == 2:
            continue
        rows = steps.drawn_rows(batch, shape)
        assert torch.equal(tiles.draw(rows), torch.from_numpy(features)[rows].float())
        if number < 2:
            assert threading.get_ident() not in read
    assert seen == [0, 1, 2, 3, 4]
    assert next(given) is batches[5]
    assert list(steps.reading_ahead(iter(batches), tiles, shape, 0)) == []


def test_what_goes_wrong_while_reading_ahead_is_said(tmp_path):
    features = np.ones((50, 7), dtype=np.float16)
    tiles = steps.Tiles(in_files(tmp_path, features), torch.device("cpu"), torch.float32)
    rows = torch.zeros(1, 1, 2, dtype=torch.int64)
    (tmp_path / "a.h5").unlink()
    tiles.read_ahead(rows)
    with pytest.raises(FileNotFoundError, match=r"a\.h5"):
        tiles.draw(rows)


def test_freed_memory_is_kept_where_the_c_library_can():
    assert steps.keep_freed_memory() in (True, False)
    assert steps.keep_freed_memory(False) in (True, False)
