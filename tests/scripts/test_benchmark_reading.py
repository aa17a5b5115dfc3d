import logging

import openslide

import benchmark_reading


def test_a_small_run_measures_every_reader(tmp_path, caplog):
    output = tmp_path / "reading.md"
    with caplog.at_level(logging.WARNING):
        benchmark_reading.main(["--side=1024", "--stored=240", "--repeats=1", f"--output={output}"])
    lines = output.read_text().splitlines()
    assert lines[0] == "| reader | 240 px, scale 1 | 240 px, scale 2 |"
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
    assert "(1.00)" in rows["JPEG decoder alone (libjpeg-turbo)"]
    assert {"isoslide, fast", "isoslide, exact", "isoslide, through OpenSlide", "PIL bicubic"} <= set(rows)
    exact, fast = (float(rows[f"isoslide, {way}"].split(" | ")[-1].split()[0]) for way in ("exact", "fast"))
    assert exact > 55
    assert fast > 40


def test_the_slide_is_an_aperio_pyramid(tmp_path):
    benchmark_reading.make_slide(tmp_path / "a.svs", 240, 1500)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.level_dimensions == ((1500, 1500), (375, 375), (93, 93))


def test_tiles_come_block_by_block():
    places = benchmark_reading.corners(1, 1024, 2)
    assert places[:4] == [(0, 0), (256, 0), (0, 256), (256, 256)]
    assert len(set(places)) == 16
