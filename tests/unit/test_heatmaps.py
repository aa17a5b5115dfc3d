from dataclasses import replace

import numpy as np
import pytest
import synth
import torch

from isoslide import aggregators, grid, heatmaps, layers, models, tasks
from isoslide.slide import Slide

SHAPE = layers.Shape(inputs=6, width=8, attention=4)


def write_models(folder, task, fitted, outputs=2):
    """Two models with running statistics that are not those of a fresh model."""
    files, shape = [], replace(SHAPE, outputs=outputs)
    card = {"shape": shape.as_dict(), "settings": {"task": task}, "fitted": fitted}
    for seed in range(2):
        state = aggregators.init(shape, [torch.Generator().manual_seed(seed)])
        state = {name: value + 0.1 * (seed + 1) for name, value in layers.single(state, 0).items()}
        path = folder / f"m{seed}.safetensors"
        models.save(path, {name: value[0] for name, value in state.items()}, card)
        files.append(str(path))
    return files


@pytest.fixture
def paths(tmp_path):
    return write_models(tmp_path, {"type": "binary"}, {})


def features(n=5):
    return np.random.default_rng(0).normal(size=(n, 6)).astype(np.float16)


def test_the_bag_is_what_predictions_say_and_attention_averages_one(paths):
    values = heatmaps.tile_values(paths, features())
    x = torch.from_numpy(features()).float()
    logits = [aggregators.predict(*models.load(path), x, [5])[0, 0] for path in paths]
    expected = np.mean([float(torch.sigmoid(logit[1] - logit[0])) for logit in logits])
    assert values.bag == pytest.approx(expected, abs=1e-6)
    assert values.attention.mean() == pytest.approx(1, abs=1e-6)


def test_a_tile_alone_is_a_bag_of_one(paths):
    values = heatmaps.tile_values(paths, features())
    alone = heatmaps.tile_values(paths, features()[3:4])
    assert values.p[3] == pytest.approx(alone.bag, abs=1e-6)
    assert alone.attention.tolist() == [1]


def turned():
    """Three tiles, the last outside, under a quarter turn."""
    corners = np.array([[0.0, 0], [112, 0], [9000, 0]])
    return grid.Tiles(
        coords=np.zeros((3, 2), np.int64),
        tile_ids=np.arange(3),
        out_of_bounds=np.array([False, False, True]),
        corners_um=corners,
        affine=np.array([[0.0, -1, 400], [1, 0, 100]]),
        attrs={"tile_px": 224, "mpp": 0.5},
    )


def test_outlines_follow_the_map():
    outlines = heatmaps.outlines(turned())
    assert outlines.shape == (2, 4, 2)
    assert outlines[1].tolist() == [[400, 212], [400, 324], [288, 324], [288, 212]]


def test_tiles_are_painted_where_they_lie_to_the_last_column():
    """A slide 1,003 px wide: the last tile ends at its edge, not at a multiple of a rounded tile width."""
    overview = np.full((60, 1003, 3), 255, np.uint8)
    edges = np.linspace(0, 1003, 10)
    squares = [[[a, 0], [b, 0], [b, 60], [a, 60]] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    values = np.arange(9) % 2.0
    image = heatmaps.paint(overview, np.array(squares), values, "gray")
    dark = image[30, :, 0] < 200
    expected = np.repeat(values == 0, 1)[np.minimum((np.arange(1003) + 0.5) // (1003 / 9), 8).astype(int)]
    assert (dark != expected).sum() <= 9  # at most the pixel that two tiles share
    assert dark[-1]


def test_the_figure_shows_three_panels(tmp_path, paths):
    path = synth.slide(tmp_path / "a.tif", size_um=(600, 500), blobs=((300, 250, 200),))
    values = heatmaps.tile_values(paths, features(2))
    for name in ("a.png", "b.png"):
        with Slide(path) as slide:
            figure = heatmaps.draw(slide, turned(), values, "scan a: p = 0.5")
        heatmaps.write(tmp_path / name, figure)
    assert figure.get_suptitle() == "scan a: p = 0.5"
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["scan", "attention (1 = as all tiles)", "probability, tile alone"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("task", "fitted", "outputs", "meaning"),
    [
        ({"type": "multiclass"}, {}, 3, "probability of class"),
        ({"type": "regression"}, {"mean": [50.0], "sd": [20.0]}, 1, "predicted value"),
        ({"type": "survival", "loss": "cox"}, {}, 1, "risk"),
        ({"type": "survival", "loss": "hazard"}, {}, 4, "risk"),
    ],
)
def test_other_kinds_of_tasks(tmp_path, task, fitted, outputs, meaning):
    files = write_models(tmp_path, task, fitted, outputs)
    values = heatmaps.tile_values(files, features())
    assert values.meaning.startswith(meaning)
    x = torch.from_numpy(features()).float()
    each = [tasks.columns(task, aggregators.predict(*models.load(path), x, [5])[0], fitted) for path in files]
    if outputs == 3:
        best = int(np.mean([[one[f"p_{c}"][0] for c in range(3)] for one in each], axis=0).argmax())
        assert values.meaning == f"probability of class {best}"
        assert values.bag == pytest.approx(np.mean([one[f"p_{best}"] for one in each]), abs=1e-6)
    else:
        assert values.bag == pytest.approx(np.mean([one["p"] for one in each]), abs=1e-5)
    path = synth.slide(tmp_path / "a.tif", size_um=(600, 500), blobs=((300, 250, 200),))
    with Slide(path) as slide:
        figure = heatmaps.draw(slide, turned(), heatmaps.tile_values(files, features(2)), "t")
    assert figure.axes[2].get_title().startswith(meaning)
