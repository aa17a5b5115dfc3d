"""Registration against known maps of real tissue, and everything that must be refused."""

import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from isoslide import registration, registration_coarse, registration_quality, registration_specimen
from isoslide.registration import IDENTITY, Matches, View, apply, compose
from isoslide.registration_quality import Quality
from isoslide.registration_specimen import NOT_REGISTERED, NOTHING_IN_COMMON
from isoslide.registration_warp import straight
from isoslide.slide import Slide

SLIDE = Path(__file__).parents[2] / "resources" / "CMU-1-Small-Region.svs"
MPP = 0.499
SETTINGS = {
    "limit_um": 5,
    "um_per_px": 1.0,
    "overview_px": 1500,
    "patch_px": 256,
    "max_patches": 60,
    "scale_tolerance": 0.1,
    "min_agreement": 0.5,
    "min_ncc": 0.7,
    "max_correction_um": 20,
    "min_overlap": 0.6,
}
# angle in degrees, mirrored, scale error, µm/px
POSES = [
    (0, False, 1.0, 0.5),
    (90, False, 1.02, 0.4),
    (180, False, 1.0, 0.9),
    (270, True, 0.98, 0.5),
    (2, False, 1.0, 0.35),
    (37, False, 1.08, 0.7),
    (141, True, 0.93, 0.46),
    (260.5, True, 1.0, 0.55),
]


class Picture:
    """A scan in memory; reads like a slide."""

    def __init__(self, image, mpp):
        self.image, self.mpp = image, mpp
        self.size_um = (image.shape[1] * mpp, image.shape[0] * mpp)

    def read(self, affine, size):
        step = np.asarray(affine) / self.mpp
        k = max(1, math.ceil(np.hypot(*step[:, 0]) - 0.01))
        warp = np.column_stack([step[:, :2] / k, step[:, :2].sum(axis=1) * 0.5 / k + step[:, 2] - 0.5])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(self.image, warp, (size[0] * k, size[1] * k), flags=flags, borderValue=(255,) * 3)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if k > 1 else image


@cache
def tissue(x=400, y=500, side=1600):
    """A square of real tissue in the middle of white glass, 1.0 x 1.0 mm."""
    with Slide(SLIDE) as slide:
        crop = slide.read(np.array([[MPP, 0, x * MPP], [0, MPP, y * MPP]]), (side, side))
    glass = np.full((side + 400, side + 400, 3), 244, np.uint8)
    glass[200:-200, 200:-200] = crop
    return Picture(glass, MPP)


def outline(picture, affine=IDENTITY, inset=200 * MPP):
    """The tissue's square under a map, and a hole in it."""
    w, h = (extent - inset for extent in tissue().size_um)
    ring = np.array([[inset, inset], [w, inset], [w, h], [inset, h]], float)
    hole = np.array([[500.0, 500], [560, 500], [560, 560], [500, 560]])
    return [[apply(affine, ring), apply(affine, hole)]]


def scan(picture, angle, mirrored, scale, mpp, seed=0, bend_um=0.0):
    """Another scan of the same glass, and the true map: pose, colour, blur, noise, JPEG, smooth distortion."""
    rng = np.random.default_rng(seed)
    turn = math.radians(angle)
    linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = linear @ np.diag([1, -1]) if mirrored else linear
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * picture.size_um @ linear.T
    low, high = corners.min(axis=0) - 60, corners.max(axis=0) + 25
    affine = np.column_stack([linear, -low])
    size = tuple(int(n) for n in np.ceil((high - low) / mpp))
    image = picture.read(compose(inverse(affine), np.array([[mpp, 0, 0], [0, mpp, 0]])), size)
    if bend_um:
        y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
        wave = bend_um / mpp * np.sin(y * mpp / 150), bend_um / mpp * np.sin(x * mpp / 170)
        image = cv2.remap(image, x + wave[0], y + wave[1], cv2.INTER_LINEAR, borderValue=(244,) * 3)
    curve = 255 * (np.arange(256)[:, None] / 255) ** rng.uniform(0.85, 1.2) * rng.uniform(0.92, 1, 3)
    light = cv2.LUT(cv2.GaussianBlur(image, (0, 0), max(0.3, 0.4 / mpp)), curve.round().astype(np.uint8)[None])
    noise = np.round(2 * rng.standard_normal(light.shape[:2], np.float32)).astype(np.int16)
    light = np.clip(light + noise[..., None], 0, 255).astype(np.uint8)
    return Picture(cv2.imdecode(cv2.imencode(".jpg", light, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], 1), mpp), affine


def inverse(affine):
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def view(picture, affine=IDENTITY, settings=SETTINGS):
    return registration.view(picture.read, picture.size_um, outline(picture, affine), settings)


def register(first, second, settings=SETTINGS):
    views = (first, registration_coarse.find(first)), (second, registration_coarse.find(second))
    return registration_specimen.register(*views, settings)


def errors(found, truth, reference):
    points = registration.spread(reference, 60, 300)
    return np.hypot(*(apply(found, points) - apply(truth, points)).T)


@pytest.fixture(scope="module")
def reference():
    return view(tissue())


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_a_known_map_is_found_to_a_fraction_of_a_micrometre(reference, pose):
    other, truth = scan(tissue(), *pose)
    found = register(reference, view(other, truth))
    assert found.reason == ""
    error = errors(found.warp.affine, truth, reference)
    assert np.median(error) < 0.2
    assert np.percentile(error, 95) < 0.5
    assert found.quality.error_um < 0.3
    assert found.quality.agreement > 0.95
    assert found.quality.overlap > 0.95


def test_large_slides_go_from_coarse_patches_to_fine_ones():
    settings = {**SETTINGS, "overview_px": 120}  # 8.3 µm/px
    other, truth = scan(tissue(), 100, True, 1.03, 0.5)
    first = view(tissue(), settings=settings)
    assert first.um_per_px > 8
    found = register(first, view(other, truth, settings), settings)
    assert found.reason == ""
    assert np.median(errors(found.warp.affine, truth, first)) < 0.2


def bent(bend_um):
    """A bent scan and its true map."""
    other, affine = scan(tissue(), 3, False, 1.0, 0.5, bend_um=bend_um)

    def truth(points):  # the pixel at q shows what lies at q + wave(q) of the straight scan
        straight_on = apply(affine, points)
        found = straight_on
        for _ in range(50):
            found = straight_on - bend_um * np.column_stack([np.sin(found[:, 1] / 150), np.sin(found[:, 0] / 170)])
        return found

    return view(other, affine), truth


@pytest.mark.parametrize("bend_um", [2, 14])
def test_a_smooth_distortion_is_followed(reference, bend_um):
    other, truth = bent(bend_um)
    found = register(reference, other)
    points = registration.spread(reference, 60, 300)
    error = np.hypot(*(found.warp.apply(points) - truth(points)).T)
    assert found.reason == ""
    assert np.median(error) < (0.25 if bend_um == 2 else 1)
    assert found.quality.error_um == pytest.approx(np.median(error), abs=0.4)
    assert found.warp.record()["largest_um"] == pytest.approx(bend_um, rel=0.25)
    assert registration_specimen.record("r", {"s": found})["s"]["correction"]["places"]


def test_without_a_correction_the_error_tells_of_the_distortion(reference):
    settings = {**SETTINGS, "max_correction_um": 0}
    found = register(reference, bent(2)[0], settings)
    assert found.reason == ""
    assert not found.warp.bends
    assert 0.7 < found.quality.error_um < 2.5
    assert "agree" in register(reference, bent(14)[0], settings).reason


def test_a_distortion_beyond_the_largest_correction_is_refused(reference):
    assert register(reference, bent(14)[0], {**SETTINGS, "max_correction_um": 5}).reason


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_a_cropped_scan_is_registered_right_or_refused(reference, share):
    whole, truth = scan(tissue(), 20, False, 1.0, 0.5)
    rows = round(whole.image.shape[0] * share)
    cropped = Picture(np.ascontiguousarray(whole.image[:rows]), whole.mpp)
    found = register(reference, view(cropped, truth))
    assert bool(found.reason) == (share < 0.7)
    if share == 0.75:
        assert np.median(errors(found.warp.affine, truth, reference)) < 0.5
        assert found.quality.overlap == pytest.approx(0.8, abs=0.12)
    if share == 0.5:
        assert "min_overlap" in found.reason


def test_a_part_that_was_not_scanned_lowers_the_overlap(reference):
    other, truth = scan(tissue(), 0, False, 1.0, 0.5)
    other.image[other.image.shape[0] * 45 // 100 :] = 244
    found = register(reference, view(other, truth))
    assert found.reason
    assert found.quality is None or found.quality.overlap < 0.6


def test_another_glass_is_refused(reference):
    elsewhere = tissue(x=300, y=2150, side=800).image[200:-200, 200:-200]
    glass = np.full((2000, 2000, 3), 244, np.uint8)
    glass[200:1000, 200:1000] = elsewhere
    glass[1000:1800, 200:1800] = np.hstack([elsewhere[::-1], elsewhere[:, ::-1]])
    first = tissue().image.copy()
    first[1600:] = 244
    found = register(view(Picture(first, MPP)), view(Picture(glass, MPP)))
    assert found.reason
    assert found.quality is None or found.quality.agreement < 0.3


def test_a_blank_scan_is_refused(reference):
    blank = np.random.default_rng(0).normal(244, 2, (2000, 2000, 3)).clip(0, 255).astype(np.uint8)
    assert register(reference, view(Picture(blank, MPP))).reason == NOTHING_IN_COMMON
    assert register(view(Picture(blank, MPP)), reference).reason == NOTHING_IN_COMMON


def section(depth_um, bend_um=0.0):
    """A section of a block of spheres (nuclei) and slow stroma, cut 4 µm thick at a depth: 0.5 µm/px, 0.8 x 0.8 mm."""
    rng = np.random.default_rng(1)
    image = np.full((1600, 1600, 3), 225, np.float32)
    bands = [cv2.resize(rng.normal(size=(40, 40)).astype(np.float32), (1600, 1600)) for _ in range(2)]
    image -= (math.cos(depth_um / 40) * bands[0] + math.sin(depth_um / 40) * bands[1])[..., None] * [5, 18, 8]
    dense = cv2.resize(rng.normal(size=(16, 16)).astype(np.float32), (1600, 1600)) > 0
    for x, y, z, radius in rng.uniform((0, 0, -20, 2.5), (800, 800, 40, 4.5), (40000, 4)):
        off = max(0.0, depth_um - z, z - depth_um - 4)
        if off < radius and dense[int(y * 2), int(x * 2)]:
            shown = round(math.sqrt(radius**2 - off**2) * 2 * 16)
            cv2.circle(image, (round(x * 32), round(y * 32)), shown, (110, 70, 150), -1, cv2.LINE_AA, 4)
    y, x = np.mgrid[:1600, :1600].astype(np.float32)
    wave = 2 * bend_um * np.sin(y / 350), 2 * bend_um * np.sin(x / 300)
    image = cv2.remap(image, x + wave[0], y + wave[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return Picture(np.clip(image, 0, 255).astype(np.uint8), 0.5)


@pytest.mark.parametrize(("depth_um", "bend_um", "same"), [(0, 0, True), (4, 8, False), (8, 0, False)])
def test_a_neighbouring_section_is_refused(depth_um, bend_um, same):
    ring = [[np.array([[20.0, 20], [780, 20], [780, 780], [20, 780]])]]
    views = [registration.view(p.read, p.size_um, ring, SETTINGS) for p in (section(0), section(depth_um, bend_um))]
    assert bool(register(*views).reason) != same


def test_real_pair_of_two_scanners(shared):
    folder = shared / "data" / "scanner-pairs" / "os2-ki67-2-scanners"
    pictures = []
    for name in ("hamamatsu", "olympus"):
        with Slide(folder / f"OS-2.{name}.tiff") as slide:
            image = slide.overview(0.5)
        pictures.append(Picture(image, 0.5))
    ring = [[np.array([[0.0, 0], [500, 0], [500, 500], [0, 500]])]]
    first, second = (registration.view(p.read, p.size_um, ring, SETTINGS) for p in pictures)
    there, back = register(first, second), register(second, first)
    assert (there.reason, back.reason) == ("", "")
    assert there.quality.error_um < 1
    assert there.quality.ncc > 0.85
    centre = np.array([[250.0, 250.0]])
    assert (
        np.hypot(*(apply(there.warp.affine, centre) - centre)[0]) < 2
    )  # the crops' own alignment: within 2.6 px of 0.5 µm
    points = registration.spread(first, 60, 100)
    assert np.median(np.hypot(*(apply(back.warp.affine, apply(there.warp.affine, points)) - points).T)) < 0.7


def test_mirrored_descriptors_are_those_of_the_mirrored_image():
    grey = cv2.cvtColor(tissue().image, cv2.COLOR_RGB2GRAY)[600:1000, 600:1000]
    sift = cv2.SIFT_create(200)
    points, descriptors = sift.detectAndCompute(grey, None)
    flipped = [cv2.KeyPoint(p.pt[0], 399 - p.pt[1], p.size, -p.angle % 360, p.response, p.octave) for p in points]
    _, expected = sift.compute(np.ascontiguousarray(grey[::-1]), flipped)
    a, b = registration_coarse._mirror(descriptors), expected
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    plain = (descriptors * b).sum(axis=1) / np.linalg.norm(descriptors, axis=1) / np.linalg.norm(b, axis=1)
    assert np.median(cosine) > 0.95
    assert np.median(plain) < 0.85


def test_match_finds_a_shift_between_pixels():
    rng = np.random.default_rng(0)
    large = cv2.GaussianBlur(rng.normal(size=(256, 256)).astype(np.float32), (0, 0), 3) * 500
    moved = cv2.warpAffine(large, np.array([[1, 0, 3.3], [0, 1, -5.6]]), (256, 256))
    dx, dy, ncc = registration.match(large[24:-24, 24:-24], moved)
    assert (dx, dy) == pytest.approx((3.3, -5.6), abs=0.06)
    assert ncc > 0.99


def test_match_of_empty_images_is_no_match():
    full = np.random.default_rng(0).normal(0, 20, (64, 64)).astype(np.float32)
    empty = np.zeros((64, 64), np.float32)
    assert registration.match(empty[8:-8, 8:-8], full) == (0, 0, 0)
    assert registration.match(full[8:-8, 8:-8], empty) == (0, 0, 0)


def test_fit_leaves_outliers_out_and_refuses_what_rests_on_too_few():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 3000, (30, 2))
    truth = np.array([[0.0, -1.01, 2000], [0.99, 0.002, 30]])
    start = np.array([[0.0, -1.0, 1990], [1.0, 0.0, 25]])
    found = apply(truth, places)
    found[::4] += rng.uniform(100, 300, found[::4].shape)
    assert np.allclose(registration.fit(places, found, start, 5), truth, atol=1e-3)
    assert registration.fit(places[:3], found[:3], start, 5) is start
    four = places[:8][[1, 2, 3, 5]], apply(start, places)[:8][[1, 2, 3, 5]] + 7
    assert np.allclose(registration.fit(*four, start, 5)[:, 2] - start[:, 2], 7, atol=0.01)
    assert registration.fit(places, apply(start, places) * 1.3, start, 5) is start


def test_patches_are_spread_over_the_tissue(reference):
    places = registration.spread(reference, 100, 60)
    assert 30 < len(places) <= 60
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + np.eye(len(places)) * 1e9
    assert distance.min() >= 75
    assert places.min() > 90
    assert places.max() < 910
    assert len(registration.spread(reference, 100, 7)) == 7
    assert np.array_equal(places[:7], registration.spread(reference, 100, 7))


def test_small_tissue_gets_smaller_patches(reference):
    small = [[np.array([[300.0, 300], [600, 300], [600, 600], [300, 600]])]]
    biopsy = registration.view(tissue().read, tissue().size_um, small, SETTINGS)
    assert registration.patches(reference, 1.0, SETTINGS)[0] == 256
    side, places = registration.patches(biopsy, 1.0, SETTINGS)
    assert side == 128
    assert len(places) >= 9


def test_the_picture_does_not_grow_with_the_slide():
    sizes = []

    def read(affine, size):
        sizes.append(size)
        return np.full((size[1], size[0], 3), 244, np.uint8)

    ring = [[np.array([[1000.0, 1000], [80000, 1000], [80000, 40000], [1000, 40000]])]]
    registration.view(read, (100_000.0, 50_000.0), ring, SETTINGS)
    assert max(sizes[0]) <= 1501


def test_chance_level():
    assert registration_quality.chance_level(np.full(20, 0.01)) == registration_quality.MIN_NCC
    assert registration_quality.chance_level(np.linspace(0, 1, 101)) == pytest.approx(0.95)
    assert registration_quality.chance_level(np.empty(0)) == 1


def test_held_out_errors_do_not_rest_on_the_patch_itself():
    places = np.random.default_rng(0).uniform(0, 1000, (20, 2))
    found = places + 1.0
    found[7] += (3, 4)
    matches = Matches(places, found, np.ones(20), np.zeros(20))
    error = registration_quality.held_out_errors(matches, straight(IDENTITY), {**SETTINGS, "limit_um": 2})
    assert error[7] == pytest.approx(5, abs=0.01)
    assert np.delete(error, 7).max() < 0.01


GOOD = Quality(error_um=1.0, error_p90_um=2.0, ncc=0.9, agreement=0.9, overlap=0.9, n_patches=20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"n_patches": 3}, "too little tissue"),
        ({"agreement": 0.4}, "min_agreement"),
        ({"ncc": 0.5}, "min_ncc"),
        ({"error_um": 5.1}, "limit_um"),
        ({"overlap": 0.59}, "min_overlap"),
    ],
)
def test_verdict_names_the_setting(change, words):
    reason = registration_quality.verdict(Quality(**{**GOOD.__dict__, **change}), SETTINGS)
    assert (words in reason) if words else reason == ""


@pytest.fixture(scope="module")
def others():
    return [view(*scan(tissue(), *pose)) for pose in (POSES[0], POSES[1])]


def stranger():
    noise = cv2.GaussianBlur(np.random.default_rng(3).normal(0, 150, (2000, 2000, 3)), (0, 0), 4)
    return view(Picture((noise * 2 + 150).clip(0, 255).astype(np.uint8), MPP))


def test_scans_are_laid_onto_the_preferred_one(reference, others):
    views = {"b": reference, "a": others[0], "c": others[1]}
    name, found = registration_specimen.register_specimen(views, ["a", "b", "c"], SETTINGS)
    assert name == "a"
    assert {scan: one.reason for scan, one in found.items()} == {"b": "", "c": ""}
    name, found = registration_specimen.register_specimen(views, ["c"], SETTINGS)  # named in the sheet
    assert name == "c"
    assert set(found) == {"a", "b"}


@pytest.mark.parametrize(
    ("tissue_mm2", "sharpness", "named", "order"),
    [
        ((1.0, 2.0, 1.5), (9, 1, 2), [], "bca"),  # most tissue
        ((1.0, 0.97, 0.9), (1, 2, 9), [], "bac"),  # nearly equal: the sharpest
        ((1.0, 1.0, 1.0), (3, 3, 3), [], "abc"),
        ((1.0, 2.0, 1.5), (9, 1, 2), ["a"], "a"),
        ((1.0, 2.0, 1.5), (9, 1, 2), ["x"], "bca"),  # the named scan cannot be used
    ],
)
def test_the_reference_is_named_or_has_most_tissue_then_best_sharpness(tissue_mm2, sharpness, named, order):
    numbers = (dict(zip("abc", values, strict=True)) for values in (tissue_mm2, sharpness))
    assert registration_specimen.preference(*numbers, named) == list(order)


def test_a_reference_of_another_glass_does_not_cost_the_others_their_pairs(reference, others):
    views = {"a": stranger(), "b": reference, "c": others[0]}
    name, found = registration_specimen.register_specimen(views, ["a", "b", "c"], SETTINGS)
    assert name == "b"
    assert found["c"].reason == ""
    assert found["a"].reason
    scans = registration_specimen.record(name, found)
    assert scans["a"]["status"] == NOT_REGISTERED
    assert scans["a"]["affine"] is None
    assert scans["b"]["affine"] == IDENTITY.tolist()


def test_two_strangers_keep_the_first_reference(reference):
    views = {"a": stranger(), "b": reference}
    name, found = registration_specimen.register_specimen(views, ["a", "b"], SETTINGS)
    assert name == "a"
    assert found["b"].reason


def test_one_scan_is_its_own_reference(reference):
    name, found = registration_specimen.register_specimen({"a": reference}, ["a"], SETTINGS)
    assert (name, found) == ("a", {})
    assert registration_specimen.record(name, found)["a"]["overlap"] == 1


def test_checkerboards_show_one_picture_where_the_map_is_right(reference, others):
    found = register(reference, others[1])
    good = registration_specimen.checkerboards(reference, {"a": (others[1], found)}, 1.0)
    none = registration_specimen.Registration(None, None, NOTHING_IN_COMMON)
    both = registration_specimen.checkerboards(reference, {"a": (others[1], found), "b": (others[1], none)}, 1.0)
    assert both.shape == (2 * good.shape[0], good.shape[1], 3)
    plain = both[good.shape[0] :]  # without a map the panels show the reference alone
    assert np.abs(good.astype(int) - plain)[24:].mean() < 12
    assert isinstance(reference, View)
