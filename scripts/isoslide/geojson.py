"""Tissue outlines as GeoJSON that QuPath opens, edits and saves, and as masks.

A polygon is a list of rings (n, 2) of x, y: the outline, then its holes. In files the unit is the level-0 pixel.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from isoslide import atomic, keys

Polygon = list[np.ndarray]

MEMBER = "isoslide"  # our foreign member of the FeatureCollection (RFC 7946 section 6.1)
SIMPLIFY_PX = 0.6  # of the mask: largest distance of an outline from the mask's pixel edges


class GeoJSONError(ValueError):
    """The file holds no usable polygons; the message says where and why."""


@dataclass(frozen=True)
class Outlines:
    """What a GeoJSON file holds.

    Attributes:
        polygons: in level-0 px; those of classes whose name ends with `*` (QuPath's Ignore*) are left out.
        facts: what the stage wrote beside them; empty in a file of other origin.
    """

    polygons: list[Polygon]
    facts: Mapping[str, Any]

    @property
    def edited(self) -> bool:
        """Whether a person drew or changed the polygons: they are not those that the facts were written with."""
        return self.facts.get("geometry") != geometry_hash(self.polygons)


def geometry_hash(polygons: Iterable[Polygon]) -> str:
    """Return 16 hex digits of the coordinates, to 0.01 px."""
    return keys.content_key(polygons=[[np.round(ring * 100).astype(int).tolist() for ring in p] for p in polygons])


def write(path: str | Path, polygons: Iterable[Polygon], facts: Mapping[str, Any]) -> None:
    """Write polygons in level-0 px; equal input gives equal bytes. One feature a line.

    Args:
        path: of the file.
        polygons: with coordinates to 0.1 px, as `trace` returns them.
        facts: kept in the member `isoslide`, together with the hash of the polygons.
    """
    polygons = list(polygons)
    member = {**facts, "geometry": geometry_hash(polygons), "unit": "level-0 px"}
    lines = ",\n".join(_dumps(_feature(polygon)) for polygon in polygons)
    features = f"[\n{lines}\n]" if polygons else "[]"
    text = f'{{"type":"FeatureCollection","{MEMBER}":{_dumps(member)},"features":{features}}}\n'
    atomic.write_text(path, text)


def read(path: str | Path) -> Outlines:
    """Read what `write`, QuPath or a user wrote: a FeatureCollection, a list of features, a feature or a geometry.

    Raises:
        GeoJSONError: not JSON, or no polygon among several geometries.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        facts = value.get(MEMBER, {}) if isinstance(value, dict) else {}
        return Outlines(_polygons(value), facts if isinstance(facts, dict) else {})
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GeoJSONError(f"{path} is not JSON: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise GeoJSONError(f"{path} is not GeoJSON with polygons: {error!r}") from error


def trace(mask: np.ndarray, px_size: tuple[float, float]) -> list[Polygon]:
    """Return the outlines of a mask along its pixels' edges, largest piece first.

    Corners of holes are cut by half a pixel, and no outline strays from the edges by more than `SIMPLIFY_PX`.

    Args:
        mask: (rows, cols) bool.
        px_size: (x, y) of a mask pixel in the unit wanted.
    """
    # OpenCV joins the centres of the pixels at the rim. On a mask of doubled size, grown by one pixel to the right and
    # down, those centres lie on the edges of the mask's own pixels, for outlines and for holes.
    doubled = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    doubled = cv2.copyMakeBorder(doubled, 0, 1, 0, 1, cv2.BORDER_CONSTANT, value=0)
    grown = cv2.dilate(doubled, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, tree = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    pieces: dict[int, Polygon] = {}
    holes: list[tuple[int, np.ndarray]] = []
    for index, contour in enumerate(contours):
        simple = cv2.approxPolyDP(contour, SIMPLIFY_PX * 2, closed=True)[:, 0]
        if len(simple) < 3:
            continue
        ring = np.round(simple / 2 * np.asarray(px_size), 1)
        parent = tree[0][index][3]
        if parent < 0:
            pieces[index] = [ring]
        else:
            holes.append((parent, ring))
    for parent, ring in holes:
        if parent in pieces:
            pieces[parent].append(ring)
    return sorted(pieces.values(), key=lambda rings: (-abs(_signed_area(rings[0])), rings[0].tolist()))


def area(polygon: Polygon) -> float:
    """Return the area inside the outline and outside the holes, in squared units of the coordinates."""
    outline, *holes = (abs(_signed_area(ring)) for ring in polygon)
    return float(outline - sum(holes))


def scaled(polygons: Iterable[Polygon], factor: tuple[float, float]) -> list[Polygon]:
    """Return the polygons with x and y multiplied by `factor`."""
    return [[ring * np.asarray(factor) for ring in polygon] for polygon in polygons]


def rasterise(polygons: Iterable[Polygon], pitch: float, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask (rows, cols) of the pixels whose centre lies in a polygon; pixel (0, 0) begins at (0, 0).

    Overlapping polygons count once (winding number above 0, holes wound the other way).

    Args:
        polygons: in any unit; parts outside the image are cut off.
        pitch: pixel size in that unit.
        shape: (rows, cols).
    """
    rows, cols = shape
    change = np.zeros((rows, cols + 1), np.int32)
    for polygon in polygons:
        for index, ring in enumerate(polygon):
            direction = (1 if index == 0 else -1) * (1 if _signed_area(ring) > 0 else -1)
            _add_crossings(change, ring / pitch, direction)
    return np.cumsum(change[:, :cols], axis=1, out=change[:, :cols]) > 0


def _add_crossings(change: np.ndarray, ring: np.ndarray, direction: int) -> None:
    """Add the steps of the winding number where the ring crosses the rows' centre lines."""
    start, stop = ring, np.roll(ring, -1, axis=0)
    upward = stop[:, 1] > start[:, 1]
    low, high = np.where(upward[:, None], start, stop), np.where(upward[:, None], stop, start)
    first = np.clip(np.ceil(low[:, 1] - 0.5), 0, len(change)).astype(int)
    counts = np.clip(np.ceil(high[:, 1] - 0.5), 0, len(change)).astype(int) - first
    edge = np.repeat(np.arange(len(ring)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    run, rise = (high - low)[edge].T
    x = low[edge, 0] + (row + 0.5 - low[edge, 1]) * run / rise
    col = np.clip(np.ceil(x - 0.5), 0, change.shape[1] - 1).astype(int)
    # With y downwards a ring of positive area goes down on its right side.
    np.add.at(change, (row, col), np.where(upward[edge], -direction, direction))


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _feature(polygon: Polygon) -> dict[str, Any]:
    rings = [[*ring.tolist(), ring[0].tolist()] for ring in polygon]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": "annotation", "classification": {"name": "Tissue", "color": [0, 160, 0]}},
    }


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _polygons(value: Any) -> list[Polygon]:
    """Return the polygons in any GeoJSON value; points and lines are passed over."""
    if isinstance(value, list):
        return [polygon for item in value for polygon in _polygons(item)]
    kind = value["type"]
    if kind == "FeatureCollection":
        return _polygons(value["features"])
    if kind == "Feature":
        return [] if _ignored(value) or not value["geometry"] else _polygons(value["geometry"])
    if kind == "GeometryCollection":
        return _polygons(value["geometries"])
    if kind == "Polygon":
        return [[_ring(ring) for ring in value["coordinates"]]]
    if kind == "MultiPolygon":
        return [[_ring(ring) for ring in polygon] for polygon in value["coordinates"]]
    return []


def _ignored(feature: Mapping[str, Any]) -> bool:
    classification = (feature.get("properties") or {}).get("classification") or {}
    return str(classification.get("name", "")).endswith("*")


def _ring(points: Any) -> np.ndarray:
    ring = np.array([point[:2] for point in points], float)
    if len(ring) > 1 and np.array_equal(ring[0], ring[-1]):
        ring = ring[:-1]
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError(f"a ring of {len(ring)} points: {ring[:1].tolist()}")
    return ring
