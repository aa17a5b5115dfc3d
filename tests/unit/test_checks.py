import shutil

import pytest
import synth

from isoslide import checks
from isoslide.slide import SlideError


def row(path, mpp="", override=""):
    return {"scan": "s", "path": str(path), "scanner": "A", "specimen": "G", "mpp": mpp, "mpp_override": override}


def test_a_good_scan(tmp_path):
    path = synth.slide(tmp_path / "a.tif", mpp=0.5)
    facts = checks.check(row(path))
    assert (facts["status"], facts["mpp_x"], facts["mpp_source"]) == ("ok", 0.5, "file")
    assert (facts["width"], facts["height"], facts["vendor"]) == (2400, 2000, "generic-tiff")
    shutil.copy(path, tmp_path / "copy.tif")  # a new time stamp, the same slide
    assert checks.check(row(tmp_path / "copy.tif"))["key"] == facts["key"]
    synth.slide(path, mpp=0.5, seed=1)
    assert checks.check(row(path))["key"] != facts["key"]


def test_mpp_of_the_sheet(tmp_path):
    path = synth.slide(tmp_path / "a.tif", mpp=0.5)
    assert checks.check(row(path, "0.51"))["mpp_x"] == 0.5  # within 5 %: the file's, which is measured
    with pytest.raises(SlideError, match=r"the sheet says 0.25 µm/px, the file 0.5 x 0.5") as error:
        checks.check(row(path, "0.25"))
    assert error.value.status == "mpp_conflict"
    facts = checks.check(row(path, "0.25", "yes"))
    assert (facts["mpp_x"], facts["mpp_source"]) == (0.25, "sheet")
    bare = synth.slide(tmp_path / "b.tif", with_mpp=False)
    facts = checks.check(row(bare, "0.25"))
    assert (facts["mpp_x"], facts["mpp_source"]) == (0.25, "sheet")


def test_implausible_mpp(tmp_path):
    with pytest.raises(SlideError, match="outside 0.05-5") as error:
        checks.check(row(synth.slide(tmp_path / "a.tif", mpp=40, size_px=(300, 300))))
    assert error.value.status == "implausible_mpp"


POWER = {"openslide.objective-power": "40"}


def test_nominal_power_is_used_only_when_asked_for():
    """Complaints G-B3, G-B8: refused with the remedy, or assumed and marked."""
    with pytest.raises(SlideError, match=r"only its nominal power, 40\): give it in the sheet's column 'mpp'"):
        checks.decide_mpp(row("a"), POWER, False)
    assert checks.decide_mpp(row("a"), POWER, True) == ((0.25, 0.25), "assumed")
    assert checks.decide_mpp(row("a", "0.27"), POWER, True) == ((0.27, 0.27), "sheet")
    for properties in ({}, *({"openslide.objective-power": power} for power in ("", "0", "-20", "20x"))):
        with pytest.raises(SlideError, match="no_mpp"):
            checks.decide_mpp(row("a"), properties, True)
    with pytest.raises(SlideError, match="nominal power 1 gives 10 µm/px"):
        checks.decide_mpp(row("a"), {"openslide.objective-power": "1"}, True)


def test_sheet_may_overrule_an_implausible_file(tmp_path):
    """Complaint G-B6: a file that says 40 µm/px."""
    path = synth.slide(tmp_path / "a.tif", mpp=40, size_px=(300, 300))
    assert checks.check(row(path, "0.5", "yes"))["mpp_x"] == 0.5


def test_mrxs_without_its_folder(tmp_path):
    """Complaints G-A13, G-B1: the message names the folder, and it is not a matter of µm/px."""
    (tmp_path / "x.mrxs").touch()
    with pytest.raises(SlideError, match=r"needs the folder x\b") as error:
        checks.check(row(tmp_path / "x.mrxs"))
    assert error.value.status == "unreadable"


class Pyramid:
    """A slide of stated level sizes."""

    def __init__(self, *levels):
        self.size = levels[0][0]
        self.levels = levels


@pytest.mark.parametrize(
    "levels",
    [(((1000, 1000), 1.0), ((2000, 2000), 0.5)), (((1000, 1000), 1.0), ((500, 250), 2.0))],
    ids=["grows", "changes shape"],
)
def test_inconsistent_pyramids(levels):
    """Complaint G-A4: a file above 4 GB read with 32-bit offsets."""
    with pytest.raises(SlideError, match="inconsistent_pyramid"):
        checks._check_pyramid(Pyramid(*levels))


def test_real_slides(shared):
    folder = shared / "data/slides"
    for path in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.dicom"):
        facts = checks.check(row(folder / path))
        assert (facts["width"], facts["height"], facts["mpp_x"]) == (2220, 2967, 0.499)
    svs, dicom = (checks.check(row(folder / f"CMU-1-Small-Region.{kind}")) for kind in ("svs", "dicom"))
    assert svs["software"] == "Aperio Image Library v11.2.1"  # complaint G-A14: the DICOM file is a conversion
    assert dicom["software"] != svs["software"]
    tcga = folder / "tcga-cr-7395-01a-01-ts1.svs"
    with pytest.raises(SlideError, match="give it in the sheet's column 'mpp'"):
        checks.check(row(tcga))
    assert checks.check(row(tcga, "0.5"))["icc"] == "yes"
