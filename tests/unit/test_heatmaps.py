import numpy as np
import pytest
import synth
import torch
import toy_models

from isoslide import aggregators, gallery, grid, heatmaps, models, tasks, tile_values
from isoslide.slide import Slide


@pytest.fixture
def paths(tmp_path):
    return toy_models.write(tmp_path, {"type": "binary"}, {})


def features(n=5):
    return np.random.default_rng(0).normal(size=(n, 6)).astype(np.float16)


def test_the_bag_is_what_predictions_say_and_attention_averages_one(paths):
    values = tile_values.of_scan(paths, features())
    x = torch.from_numpy(features()).float()
    logits = [aggregators.predict(*models.load(path), x, [5])[0, 0] for path in paths]
    expected = np.mean([float(torch.sigmoid(logit[1] - logit[0])) for logit in logits])
    assert values.bag == pytest.approx(expected, abs=1e-6)
    assert values.attention.mean() == pytest.approx(1, abs=1e-6)


def test_a_tile_alone_is_a_bag_of_one(paths):
    values = tile_values.of_scan(paths, features())
    alone = tile_values.of_scan(paths, features()[3:4])
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


def test_the_figure_shows_four_panels(tmp_path, paths):
    path = synth.slide(tmp_path / "a.tif", size_um=(600, 500), blobs=((300, 250, 200),))
    values = tile_values.of_scan(paths, features(2))
    for name in ("a.png", "b.png"):
        with Slide(path) as slide:
            figure = heatmaps.draw(slide, turned(), values, "scan a: p = 0.5")
        heatmaps.write(tmp_path / name, figure)
    assert figure.get_suptitle() == "scan a: p = 0.5"
    titles = [axes.get_title() for axes in figure.axes[:4]]
    total = f"contribution; all tiles together: logit {values.total:+.3f}"
    assert titles == ["scan", "attention (1 = as all tiles)", total, "probability, tile alone"]
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
    files = toy_models.write(tmp_path, task, fitted, outputs)
    values = tile_values.of_scan(files, features())
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
        figure = heatmaps.draw(slide, turned(), tile_values.of_scan(files, features(2)), "t")
    assert figure.axes[3].get_title().startswith(meaning)


def effective_head(path):
    """Weights (C, E) and biases (C,) of a model's head with its normalisation folded in, in double precision."""
    state = {name: value[0].double() for name, value in models.load(path)[0].items()}
    scale = state["head_norm.weight"] / (state["head_norm.var"] + 1e-5).sqrt()
    weight = state["head.weight"] * scale
    return weight, state["head.bias"] + state["head.weight"] @ (
        state["head_norm.bias"] - scale * state["head_norm.mean"]
    )


@pytest.mark.parametrize("aggregator", ["abmil", "gated_abmil", "clam_sb", "mean"])
def test_contributions_sum_to_the_scans_logit(tmp_path, aggregator):
    files = toy_models.write(tmp_path, {"type": "binary"}, {}, aggregator=aggregator)
    values = tile_values.of_scan(files, features(40))
    x = torch.from_numpy(features(40)).float()
    logits = [aggregators.predict(*models.load(path), x, [40])[0, 0].double() for path in files]
    expected = np.mean([float(logit[1] - logit[0]) for logit in logits])
    assert values.total == pytest.approx(expected, abs=1e-5)
    assert values.contribution.sum() == pytest.approx(expected, abs=1e-5)
    assert np.std(values.contribution) > 1e-4  # tiles differ
    by_hand = np.zeros(40)
    for path in files:
        state, shape = models.load(path)
        h, scores = aggregators.AGGREGATORS[aggregator].embed(state, shape, x)
        weight, bias = effective_head(path)
        each = weight @ h[0].double() + bias[:, None]
        by_hand += (scores[0].double().softmax(-1) * (each[1] - each[0])).numpy() / len(files)
    assert np.abs(values.contribution - by_hand).max() < 1e-6


def test_contributions_of_other_kinds(tmp_path):
    """Class against the mean of the others; a value in its unit, above the training mean; a risk of intervals: none."""
    x = torch.from_numpy(features()).float()
    files = toy_models.write(tmp_path, {"type": "multiclass"}, {}, 3)
    values = tile_values.of_scan(files, features())
    index = int(values.meaning[-1])
    each = [aggregators.predict(*models.load(path), x, [5])[0, 0].double().numpy() for path in files]
    expected = np.mean([one[index] - np.delete(one, index).mean() for one in each])
    assert values.contribution.sum() == pytest.approx(expected, abs=1e-5)
    assert values.total_meaning == f"logit of class {index}"
    assert sum(values.bag_classes.values()) == pytest.approx(1)
    assert (values.classes[f"p_{index}"] == values.p).all()
    files = toy_models.write(tmp_path, {"type": "regression"}, {"mean": [50.0], "sd": [20.0]}, 1)
    values = tile_values.of_scan(files, features())
    assert values.contribution.sum() == pytest.approx(values.bag - 50, abs=1e-4)
    values = tile_values.of_scan(toy_models.write(tmp_path, {"type": "survival", "loss": "hazard"}, {}, 4), features())
    assert values.contribution is None
    assert "product over intervals" in values.no_contribution


def test_transmil_says_why_it_has_no_contributions(tmp_path):
    files = toy_models.write(tmp_path, {"type": "binary"}, {}, aggregator="transmil")
    values = tile_values.of_scan(files, features())
    assert values.contribution is None
    assert "attend to each other" in values.no_contribution
    path = synth.slide(tmp_path / "a.tif", size_um=(600, 500), blobs=((300, 250, 200),))
    with Slide(path) as slide:
        figure = heatmaps.draw(slide, turned(), tile_values.of_scan(files, features(2)), "t")
    assert "not available" in figure.axes[2].get_title()


def flat_values(contribution):
    n = len(contribution)
    return tile_values.TileValues(
        np.ones(n), np.linspace(0.2, 0.8, n), 0.5, np.array(contribution), float(np.sum(contribution))
    )


def test_the_gallery_ranks_by_contribution_and_shows_no_tile_twice():
    most, least = gallery.rows(flat_values([0.1, -0.3, 0.5, 0.0, 0.5]), shown=2)
    assert most.places.tolist() == [2, 4]
    assert least.places.tolist() == [1, 3]
    most, least = gallery.rows(flat_values([0.1, -0.3, 0.5]), shown=6)
    assert most.places.tolist() == [2, 0]
    assert least.places.tolist() == [1]
    assert [len(row.places) for row in gallery.rows(flat_values([1.0]))] == [1, 0]


def test_the_gallery_shows_the_pixels_of_its_tiles(tmp_path):
    path = synth.slide(tmp_path / "a.tif", size_um=(600, 500), blobs=((300, 250, 200),))
    corners = np.array([[0.0, 0], [112, 0], [224, 112]])
    tiles = grid.Tiles(
        coords=(corners * 2).astype(int),
        tile_ids=np.arange(3),
        out_of_bounds=np.array([True, False, False]),
        corners_um=corners,
        affine=grid.IDENTITY,
        attrs={"tile_px": 224, "mpp": 0.5},
    )
    with Slide(path) as slide:
        picture = np.array(gallery.draw(slide, tiles, flat_values([0.1, 0.4]), "t"))
        expected = slide.read(np.array([[0.5, 0, 224], [0, 0.5, 112]]), (224, 224))
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, :400], (224, 224, 3))[:, :, 0]
    assert any((windows[row, gallery.GAP] == expected).all() for row in range(len(windows)))
    assert gallery.caption(tiles, 2, flat_values([0.1, 0.4]), 1) == (
        "x 448, y 224 px\nscore 0.8, attention 1\ncontribution +0.4"
    )
