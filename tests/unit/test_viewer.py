"""The pyramid of a slide, the page that shows it, and the page in a browser (skipped where there is no chromium)."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import synth
from PIL import Image

from isoslide import grid, pyramid, tile_values, viewer
from isoslide.slide import Slide

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: the viewer page is not looked at in a browser"
)
SCAN = {"scan": "a b&c", "scanner": "S", "specimen": "s"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("viewer") / "a.tif"
    return synth.slide(path, size_px=(2007, 1121), blobs=((500, 280, 260),))


def squares():
    """Tiles of 557 px at 0.5 µm/px: three columns, two rows; the fourth column would pass the edge."""
    ids = np.array([row * grid.ROW + column for row in range(2) for column in range(4)])
    corners = grid.corners(ids, 278.5)
    return grid.Tiles(
        coords=np.round(corners / 0.5).astype(np.int64),
        tile_ids=ids,
        out_of_bounds=np.array([False, False, False, True] * 2),
        corners_um=corners,
        affine=grid.IDENTITY,
        attrs={"tile_px": 557, "mpp": 0.5},
    )


def values(contribution=True):
    added = np.array([-1.0, 0, 0, 0, 0, 1]) if contribution else None
    return tile_values.TileValues(
        np.array([0.0, 1, 1, 1, 1, 2]), np.array([0, 0.5, 0.5, 0.5, 0.5, 1]), 0.75, added, 0.5, no_contribution="<no>"
    )


def test_levels_halve_until_one_picture_holds_the_slide():
    found = pyramid.levels((1003.5, 560.5), 0.5)
    assert [level.size for level in found] == [(502, 281), (1004, 561), (2007, 1121)]
    assert [level.um_per_px for level in found] == [2, 1, 0.5]
    assert [level.grid for level in found] == [(1, 1), (2, 2), (4, 3)]
    assert [level.size for level in pyramid.levels((10.0, 10.0), 0.5)] == [(20, 20)]


def test_pictures_show_the_slide_where_it_is(slide, tmp_path):
    with Slide(slide) as opened:
        assert pyramid.write(opened, tmp_path, 0.5) == 1 + 4 + 12
        expected = opened.read(np.array([[0.5, 0, 768], [0, 0.5, 512]]), (471, 97))
    last = Image.open(tmp_path / "2/3_2.jpg")
    assert last.size == (2007 - 3 * 512, 1121 - 2 * 512)
    assert np.abs(np.array(last, float) - expected).mean() < 3  # JPEG
    first = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    with Slide(slide) as opened:
        pyramid.write(opened, tmp_path, 0.5)
    assert first == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jpg")}


def render(models=None):
    models = models or [viewer.Model("t", "e", "robust", "557px_0.5um", values(), 2)]
    return viewer.render(
        SCAN, "slides/a b&c/k", pyramid.levels((1003.5, 560.5), 0.5), {"557px_0.5um": squares()}, models
    )


def test_the_page_holds_tiles_values_and_reasons_and_asks_for_nothing_else():
    failed = viewer.Model("t", "e", "plain", reason="no model of a <fold>")
    page = render([viewer.Model("t", "e", "robust", "557px_0.5um", values(contribution=False), 2), failed])
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["folder"] == "slides/a%20b%26c/k"
    assert data["levels"][-1] == [2007, 1121]
    corners = data["views"]["557px_0.5um"]
    assert corners[-1] == [1114, 557, 1671, 557, 1671, 1114, 1114, 1114]
    assert data["ids"]["557px_0.5um"] == [0, 1, 2, grid.ROW, grid.ROW + 1, grid.ROW + 2]
    attention, contribution, score = data["models"][0]["layers"]
    assert attention["values"] == [0, 1, 1, 1, 1, 2]
    assert contribution["values"] is None
    assert contribution["title"].endswith("<no>")
    assert score["ends"] == [0, 0.5, 1]
    assert "probability 0.750, mean of 2 models" in page
    assert "t, e, plain (no model of a &lt;fold&gt;)." in page
    assert "a b&amp;c" in page
    assert not re.search(r'(src|href)="|https?:', page)


@pytest.fixture(scope="module")
def page(slide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "slides/a b&c/k").mkdir(parents=True)
    with Slide(slide) as opened:
        pyramid.write(opened, folder / "slides/a b&c/k", 0.5)
    (folder / "index.html").write_text(render(), encoding="utf-8")
    return folder / "index.html"


def browse(page, hash_, *arguments, size="800,600"):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
    command += [f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000", *arguments]
    done = subprocess.run([*command, f"file://{page}#{hash_}"], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def facts(page, hash_, **options):
    """What the page says of itself: attributes data-* of its body."""
    body = re.search(r"<body([^>]*)>", browse(page, hash_, "--dump-dom", **options))[1]
    return dict(re.findall(r'data-([\w-]+)="([^"]*)"', body))


def picture(page, hash_, **options):
    """A picture of the page, and where on it the middle of the slide's canvas is; the canvas fills it to its end."""
    target = page.parent / "shot.png"
    browse(page, hash_, f"--screenshot={target}", **options)
    shot = np.array(Image.open(target).convert("RGB")).astype(int)
    left, top, _, _ = map(float, facts(page, hash_, **options)["canvas"].split())
    return shot, ((left + shot.shape[1]) / 2, (top + shot.shape[0]) / 2)


@needs_browser
def test_the_last_tile_ends_within_a_pixel_of_where_it_does(page):
    """At one screen pixel per slide pixel; the last tile has the darkest red, the corner is at (1671, 1114)."""
    hash_ = "layer=contribution&opacity=1&x=1600&y=1000&zoom=1"
    shot, middle = picture(page, hash_)
    right, bottom = middle[0] + 71, middle[1] + 114
    red = np.abs(shot - (0x67, 0x00, 0x1F)).max(axis=2) < 3
    row, column = int(bottom) - 60, int(right) - 60
    assert abs(np.flatnonzero(red[row]).max() + 1 - right) <= 1
    assert abs(np.flatnonzero(red[:, column]).max() + 1 - bottom) <= 1


@needs_browser
def test_the_slide_lies_under_the_tiles_at_every_zoom(page, slide):
    with Slide(slide) as opened:
        for zoom, um in ((1, 0.5), (0.25, 2.0)):
            hash_ = f"layer=none&x=1000&y=560&zoom={zoom}"
            known = facts(page, hash_)
            assert (known["waiting"], known["missing"]) == ("0", "0")
            shot, middle = picture(page, hash_)
            middle = [round(place) for place in middle]
            part = shot[middle[1] - 50 : middle[1] + 50, middle[0] - 80 : middle[0] + 80]
            corner = np.array([1000, 560]) * 0.5 - np.array([80, 50]) * um
            expected = opened.read(np.column_stack([np.eye(2) * um, corner]), (160, 100)).astype(int)
            assert np.abs(part - expected).mean() < 8
            assert np.abs(part - np.roll(expected, 12, axis=1)).mean() > 2 * np.abs(part - expected).mean()


@needs_browser
def test_the_scale_bar_is_as_long_as_it_says(page):
    assert facts(page, "zoom=1")["bar"] == "50 µm = 100.0 px"
    assert facts(page, "zoom=0.1")["bar"] == "500 µm = 100.0 px"


@needs_browser
@pytest.mark.parametrize("size", ["400,700", "1400,900"])
def test_the_whole_slide_is_shown_at_first(page, size):
    known = facts(page, "", size=size)
    width, height = map(float, known["canvas"].split()[2:])
    assert float(known["zoom"]) == pytest.approx(0.96 * min(width / 2007, height / 1121), rel=1e-3)
    assert known["missing"] == "0"
    assert height > 300


HANDS = """
const under = (x, y) => [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2].map((d, i) =>
  (d / view.zoom + [view.x, view.y][i]).toFixed(1)).join(",");
const top_ = canvas.getBoundingClientRect().top;
const send = (kind, x, y, more) => canvas.dispatchEvent(
  new (kind === "wheel" ? WheelEvent : PointerEvent)(kind, { clientX: x, clientY: y + top_, bubbles: true, ...more }));
canvas.setPointerCapture = () => {};
const told = document.body.dataset;
told.before = under(300, 200);
send("wheel", 300, 200, { deltaY: -400 });
told.wheel = under(300, 200); told.closer = view.zoom > 1;
send("pointerdown", 300, 200, { pointerId: 1 });
send("pointermove", 340, 170, { pointerId: 1 });
told.drag = under(340, 170);
send("pointerdown", 440, 170, { pointerId: 2 });
told.second = under(440, 170);
const zoom = view.zoom;
send("pointermove", 540, 170, { pointerId: 2 });
told.first_after = under(340, 170); told.second_after = under(540, 170); told.factor = (view.zoom / zoom).toFixed(3);
send("pointerup", 340, 170, { pointerId: 1 }); send("pointerup", 540, 170, { pointerId: 2 });
byId("whole").click(); paint();
told.tile = byId("tile").textContent;
"""


@needs_browser
def test_wheel_and_fingers_keep_the_place_under_them(page):
    hands = page.with_name("hands.html")
    hands.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{HANDS}</script></body>"))
    told = facts(hands, "x=900&y=500&zoom=1&layer=score")
    assert told["closer"] == "true"
    assert told["before"] == told["wheel"] == told["drag"] == told["first_after"]
    assert told["second"] == told["second_after"]
    assert told["factor"] == "2.000"
    assert told["tile"] == "tile 1: attention 1, contribution 0, score 0.5"


@needs_browser
def test_the_report_links_to_pages_that_are_there_and_names_those_that_are_not(tmp_path):
    """The part of the report's page with the links, and its script."""
    script = (viewer.TEMPLATES / "page.js").read_text()
    (tmp_path / "viewer/thumbnails").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "viewer/thumbnails/here.jpg")
    figures = "".join(
        f'<figure><a href="../viewer/{scan}.html"><img src="../viewer/thumbnails/{scan}.jpg"></a>{scan}</figure>'
        for scan in ("here", "absent")
    )
    page = tmp_path / "report/index.html"
    page.parent.mkdir()
    page.write_text(f'<div class="viewers">{figures}</div><script>{script}</script>')
    text = browse(page, "", "--dump-dom")
    assert 'href="../viewer/here.html"' in text
    assert "not made yet, or not beside this page: absent" in text
    assert "not made yet, or not beside this page: here" not in text
