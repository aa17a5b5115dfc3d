"""Ids and paths of every kind come through the stages as they stand in the sheet."""

import shutil

import pytest
import synth
from stages import Stages, files

from isoslide import sheet

IDS = [
    "00123",  # G-G1: leading zeros
    "123",
    "1e5",
    "NA",
    "a.b.c",
    "slide 1",  # G-G6: spaces
    "slide  1\u00a0a",
    "2023%2023.51.44",  # G-G7
    "Größe-β-切片",
    'it\'s "quoted" & $HOME `x` * ?',
    "x" * 200,
    "切" * 66,  # 198 bytes
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return synth.slide(tmp_path_factory.mktemp("slide") / "a.tif", size_um=(700, 700), blobs=((350, 350, 250),))


def test_ids_of_every_kind_name_the_files(tmp_path, slide):
    rows = [{"scan": scan, "path": slide, "scanner": "A"} for scan in IDS if '"' not in scan]
    stages = Stages(tmp_path, rows)
    expected = sorted(row["scan"] for row in rows)
    for table in (stages.checks(), stages.tissue(), stages.tiles()):
        assert table.index.tolist() == expected
        assert set(table["status"]) == {"ok"}
    for scan in expected:
        for name in (f"tissue/{scan}.geojson", f"tissue/{scan}.jpg", f"tiles/{scan}.h5"):
            assert (tmp_path / name).is_file(), name
    before = files(tmp_path)
    stages.tissue()
    stages.tiles()
    assert files(tmp_path) == before
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_paths_of_every_kind_are_opened(tmp_path, slide):
    """Complaints G-G2, G-G6, G-G7: the id is the sheet's, not the file name's."""
    names = [
        "my slides/a b.tif",
        "two  blanks/c\u00a0d.tif",
        "2023%2023.51.44.tif",
        "Größe/切片.tif",
        "no_suffix",
        "a.svs",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(slide, tmp_path / name)
    rows = [{"scan": f"s{i}", "path": tmp_path / name, "scanner": "A"} for i, name in enumerate(names)]
    stages = Stages(tmp_path, rows)
    for table in (stages.checks(), stages.tissue()):
        assert set(table["status"]) == {"ok"}


@pytest.mark.parametrize(
    "scan", ["a/b", "a\\b", "..", "../a", ".hidden", "-n", "a\x07b", "{scan}", "x" * 201, "切" * 67]
)
@pytest.mark.parametrize("column", ["scan", "specimen", "patient", "scanner"])
def test_ids_that_cannot_be_file_names_are_refused(tmp_path, column, scan):
    row = {"scan": "s1", "path": "a.tif", "scanner": "A", "specimen": "g", "patient": "p"} | {column: scan}
    Stages(tmp_path, [row])
    with pytest.raises(sheet.SheetError, match=rf"line 2: {column} "):
        sheet.read(tmp_path / "slides.tsv")
