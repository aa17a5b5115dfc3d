import numpy as np
import pytest
import torch

from isoslide import steps

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


def test_freed_memory_is_kept_where_the_c_library_can():
    assert steps.keep_freed_memory() in (True, False)
    assert steps.keep_freed_memory(False) in (True, False)
