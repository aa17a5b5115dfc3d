"""Tissue that invites a wrong map: nearly symmetric, in pieces, stained otherwise, another section on the glass."""

import cv2
import numpy as np
import pytest
from skimage import color
from test_registration import MPP, SETTINGS, Picture, apply, compose, errors, register, scan, section, tissue

from isoslide import registration

SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def seen(picture, affine=None, boxes=((100, 100, 800),)):
    """The view of a scan whose tissue is squares (x, y, side) µm of the glass under a map."""
    rings = [SQUARE * side + (x, y) for x, y, side in boxes]
    rings = rings if affine is None else [apply(affine, ring) for ring in rings]
    return registration.view(picture.read, picture.size_um, [[ring] for ring in rings], SETTINGS)


def on_glass(image):
    glass = np.full((2000, 2000, 3), 244, np.uint8)
    glass[200:-200, 200:-200] = image
    return Picture(glass, MPP)


def square_of_tissue():
    return tissue().image[200:-200, 200:-200]


@pytest.mark.parametrize("angle", [0, 180, 60])
@pytest.mark.parametrize("what", ["mostly symmetric", "symmetric but for the cells"])
def test_nearly_symmetric_tissue_is_not_laid_upside_down(angle, what):
    plain = square_of_tissue()
    symmetric = np.vstack([plain[:800], plain[799::-1, ::-1]])
    if what == "mostly symmetric":
        image = cv2.addWeighted(symmetric, 0.85, plain, 0.15, 0)
    else:  # structures of over about 25 µm, all that the overview shows, are symmetric
        cells = plain.astype(np.float32) - cv2.GaussianBlur(plain, (0, 0), 12)
        image = np.clip(cv2.GaussianBlur(symmetric, (0, 0), 12) + cells, 0, 255).astype(np.uint8)
    glass = on_glass(image)
    other, truth = scan(glass, angle, False, 1.0, 0.6)
    found = register(seen(glass), seen(other, truth))
    assert found.reason or np.percentile(errors(found.warp.affine, truth, seen(glass)), 95) < 0.5


FRAGMENTS = ((100, 100, 350), (550, 100, 350), (300, 550, 350))


def fragments(kept):
    """Pieces of tissue on one glass, only some of them there."""
    glass = np.full((2000, 2000, 3), 244, np.uint8)
    for x, y, side in (FRAGMENTS[i] for i in kept):
        box = np.s_[round(y / MPP) : round((y + side) / MPP), round(x / MPP) : round((x + side) / MPP)]
        glass[box] = tissue().image[box]
    return Picture(glass, MPP)


@pytest.mark.parametrize(("missing", "passes"), [((), True), ((2,), True), ((0, 1), False)])
def test_missing_fragments(missing, passes):
    kept = [i for i in range(3) if i not in missing]
    other, truth = scan(fragments(kept), 200, True, 1.02, 0.6)
    reference = seen(fragments(range(3)), boxes=FRAGMENTS)
    found = register(reference, seen(other, truth, [FRAGMENTS[i] for i in kept]))
    assert bool(found.reason) != passes
    if passes:
        there = seen(fragments(kept), boxes=[FRAGMENTS[i] for i in kept])
        assert np.percentile(errors(found.warp.affine, truth, there), 95) < 0.5
        assert found.quality.overlap == pytest.approx(len(kept) / 3, abs=0.1)


def immunostained(rgb, seed=0):
    """The tissue in the colours of immunohistochemistry: no eosin, DAB in the nuclei of some regions."""
    blue, pink, _ = np.moveaxis(color.rgb2hed(rgb), -1, 0)
    field = np.random.default_rng(seed).normal(size=(12, 12)).astype(np.float32)
    brown = np.clip(cv2.resize(field, rgb.shape[1::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    hed = np.stack([blue * (1 - brown) + 0.1 * pink, 0 * pink, blue * brown * 1.5], axis=-1)
    return (np.clip(color.hed2rgb(hed), 0, 1) * 255).round().astype(np.uint8)


def test_other_colours_of_the_same_cells_are_laid_right():
    plain = tissue()
    other, truth = scan(Picture(immunostained(plain.image), MPP), 130, False, 1.0, 0.5)
    found = register(seen(plain), seen(other, truth))
    assert found.reason == ""
    assert np.percentile(errors(found.warp.affine, truth, seen(plain)), 95) < 1
    assert found.quality.error_um < 1


def test_of_two_sections_on_the_glass_the_right_one_is_found():
    pictures = [section(depth).image for depth in (0, 8)]
    both = Picture(np.hstack(pictures), 0.5)
    boxes = ((20, 20, 760), (820, 20, 760))
    alone = Picture(pictures[1], 0.5)
    reference = registration.view(alone.read, alone.size_um, [[SQUARE * 760 + 20]], SETTINGS)
    found = register(reference, seen(both, boxes=boxes))
    assert found.reason == ""
    assert np.abs(found.warp.affine - [[1, 0, 800], [0, 1, 0]])[:, 2].max() < 1


@pytest.mark.parametrize("bend_um", [3, 6, 12])
def test_a_bent_neighbouring_section_is_not_corrected_into_a_match(bend_um):
    ring = [[SQUARE * 760 + 20]]
    views = [registration.view(p.read, p.size_um, ring, SETTINGS) for p in (section(0), section(4, bend_um))]
    assert register(*views).reason


def test_there_and_back_is_nowhere():
    plain = tissue()
    other, truth = scan(plain, 75, True, 1.0, 0.6)
    first, second = seen(plain), seen(other, truth)
    there, back = register(first, second), register(second, first)
    both = compose(back.warp.affine, there.warp.affine)
    assert np.abs(both - [[1, 0, 0], [0, 1, 0]])[:, :2].max() < 1e-3
    assert np.abs(both[:, 2]).max() < 0.5
