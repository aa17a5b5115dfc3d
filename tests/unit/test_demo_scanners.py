import cv2
import numpy as np
import pytest

from isoslide import demo, demo_scanners
from isoslide.demo_scanners import SCANNERS

GLASS_UM = (600.0, 450.0)
GLASS_MPP = 0.499
SPECIMEN = demo.Specimen("P01-1", 0, 0.4, False)


def picture_of(glass: np.ndarray, name: str, strength: float = 1.0) -> np.ndarray:
    scanner = demo_scanners.exaggerated(SCANNERS[name], strength)
    pose = demo_scanners.pose(name, SPECIMEN, GLASS_UM, seed=1)
    size = demo_scanners.scan_size(scanner, GLASS_UM)
    return demo_scanners.scan(glass, GLASS_MPP, pose, size, scanner, np.random.default_rng(0))


def clear_glass() -> np.ndarray:
    return np.ones((round(GLASS_UM[1] / GLASS_MPP), round(GLASS_UM[0] / GLASS_MPP), 3), np.float32)


def test_microns_per_pixel_span() -> None:
    mpps = [scanner.mpp for scanner in SCANNERS.values()]
    assert list(SCANNERS) == list(demo.SCANNERS)
    assert len(set(mpps)) == 4
    assert all(0.227 <= mpp <= 0.55 for mpp in mpps)


def test_strength_scales_the_differences_from_a() -> None:
    for name in "BCD":
        assert demo_scanners.exaggerated(SCANNERS[name], 1.0) == SCANNERS[name]
        assert demo_scanners.exaggerated(SCANNERS["A"], 7.0) == SCANNERS["A"]
        double = demo_scanners.exaggerated(SCANNERS[name], 2.0)
        assert double.mpp == SCANNERS[name].mpp
        assert double.gamma == pytest.approx(SCANNERS[name].gamma ** 2)
        assert double.noise - 1.0 == pytest.approx(2 * (SCANNERS[name].noise - 1.0))
        assert double.quarter_turns == SCANNERS[name].quarter_turns
    assert demo_scanners.exaggerated(SCANNERS["B"], 0.0).gain == (1, 1, 1)


@pytest.mark.parametrize("name", list(SCANNERS))
def test_pose_is_a_small_motion_and_a_quarter_turn_on_c(name: str) -> None:
    for index in range(20):
        specimen = demo.Specimen("x", index, 0.4, False)
        pose = demo_scanners.pose(name, specimen, GLASS_UM, seed=1)
        assert np.linalg.det(pose[:, :2]) == pytest.approx(1)
        degrees = np.rad2deg(np.arctan2(pose[1, 0], pose[0, 0]))
        assert abs(degrees - (-90 if name == "C" else 0)) <= (0 if name == "A" else demo_scanners.TURN_DEGREES)
        centre = pose[:, :2] @ np.array(GLASS_UM) / 2 + pose[:, 2]
        size_um = np.array(demo_scanners.scan_size(SCANNERS[name], GLASS_UM)) * SCANNERS[name].mpp
        assert np.abs(centre - size_um / 2).max() <= demo_scanners.SHIFT_UM


@pytest.mark.parametrize("name", list(SCANNERS))
def test_a_dot_on_the_glass_is_where_the_pose_says(name: str) -> None:
    glass = clear_glass()
    cv2.circle(glass, (400, 300), 8, (0.2, 0.2, 0.2), -1)  # centred on the middle of pixel (400, 300)
    darkness = SCANNERS[name].white - picture_of(glass, name).mean(axis=2)
    darkness[darkness < 40] = 0
    y, x = (np.indices(darkness.shape) + 0.5) * SCANNERS[name].mpp
    found = np.array([(x * darkness).sum(), (y * darkness).sum()]) / darkness.sum()
    pose = demo_scanners.pose(name, SPECIMEN, GLASS_UM, seed=1)
    expected = pose[:, :2] @ (np.array([400.5, 300.5]) * GLASS_MPP) + pose[:, 2]
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_between_takes_points_from_scan_to_scan() -> None:
    a, c = (demo_scanners.pose(name, SPECIMEN, GLASS_UM, seed=1) for name in "AC")
    point = np.array([123.0, 45.0])
    on_a, on_c = (pose[:, :2] @ point + pose[:, 2] for pose in (a, c))
    affine = demo_scanners.between(a, c)
    np.testing.assert_allclose(affine[:, :2] @ on_a + affine[:, 2], on_c, atol=1e-9)
    np.testing.assert_allclose(demo_scanners.between(a, a), np.eye(2, 3), atol=1e-9)


@pytest.mark.parametrize("name", list(SCANNERS))
def test_clear_glass_is_white_times_gain_with_the_noise_asked_for(name: str) -> None:
    picture = picture_of(clear_glass(), name)
    scanner = SCANNERS[name]
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), scanner.white * np.array(scanner.gain), atol=0.1)
    rounding = 1 / 12
    assert picture[..., 1].std() == pytest.approx(np.sqrt(scanner.noise**2 + rounding), rel=0.05)


def test_blocks_leave_no_seams() -> None:
    """The picture is rendered in blocks; without noise it must equal one rendered at once, up to rounding."""
    glass = clear_glass()
    glass *= np.random.default_rng(1).uniform(0.3, 1, (glass.shape[0], glass.shape[1], 1)).astype(np.float32)
    glass = cv2.GaussianBlur(glass, (0, 0), 1.5)
    scanner = demo_scanners.exaggerated(SCANNERS["B"])
    quiet = demo_scanners.Scanner(**(vars(scanner) | {"noise": 0.0}))
    pose = demo_scanners.pose("B", SPECIMEN, GLASS_UM, seed=1)
    size = demo_scanners.scan_size(quiet, GLASS_UM)
    picture = demo_scanners.scan(glass, GLASS_MPP, pose, size, quiet, np.random.default_rng(0))
    light = demo_scanners._sample(glass, GLASS_MPP, pose, (0, 0), size, quiet.mpp)
    whole = np.clip(np.rint(demo_scanners._expose(light, quiet)), 0, 255)
    difference = np.abs(picture - whole)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.02
