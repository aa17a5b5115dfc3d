import re
from html import unescape
from urllib.parse import unquote

import pandas as pd

from isoslide import figures, pictures

NUMBERS = {"tissue_mm2": "100", "sharpness": "1", "ink_share": "0", "black_share": "0"}


def rows(n, **changes):
    row = {"status": "ok", "reason": "", "scanner": "A", **NUMBERS} | changes
    return pd.DataFrame([{"scan": f"s{i:03}", "specimen": f"g{i:03}"} | row for i in range(n)])


def sections(page):
    """{title: scans in order} of a contact sheet."""
    parts = re.split(r"<h2>(.*?)</h2>", page)[1:]
    return {
        title: [unescape(name) for name in re.findall(r"<figcaption><b>(.*?)</b>", part)]
        for title, part in zip(parts[::2], parts[1::2], strict=True)
    }


def test_contact_sheet_shows_every_scan_once_and_trouble_first():
    table = rows(200)
    table.loc[7, "ink_share"] = "0.2"
    table.loc[9, ["status", "reason", *NUMBERS]] = ["unreadable", "<bad> header", "", "", "", ""]
    table.loc[11, "tissue_mm2"] = "1"
    table.loc[13, "sharpness"] = "0.1"
    page = pictures.contact_sheet(table, {scan: f"{scan}.jpg" for scan in table["scan"].drop(9)})
    found = sections(page)
    assert list(found) == ["Given up (1)", "Worth a look (3)", "No remarks (196)"]
    assert found["Given up (1)"] == ["s009"]
    assert found["Worth a look (3)"] == ["s007", "s011", "s013"]
    assert sorted(sum(found.values(), [])) == table["scan"].tolist()
    assert page.count("<img") == 199
    for text in ("unreadable: &lt;bad&gt; header", "much ink", "little tissue", "blurred"):
        assert text in page


def test_links_reach_files_of_any_name():
    """Complaints G-G6, G-G7: spaces, percent signs, quotes, letters of any language."""
    names = ["a b", "2023%2023.51", "Größe", 'x"y', "#1?"]
    table = rows(len(names)).assign(scan=names)
    page = pictures.contact_sheet(table, {name: f"{name}.jpg" for name in names})
    links = {unquote(unescape(link)) for link in re.findall(r'src="(.*?)"', page)}
    assert links == {f"{name}.jpg" for name in names}


def test_scans_of_a_specimen_stand_together():
    table = rows(4).assign(specimen=["g1", "g0", "g1", "g0"])
    (scans,) = sections(pictures.contact_sheet(table, {})).values()
    assert scans == ["s001", "s003", "s000", "s002"]


def test_no_scan_came_through():
    table = rows(2, status="missing")[["scan", "status", "reason", "specimen", "scanner"]]
    assert list(sections(pictures.contact_sheet(table, {}))) == ["Given up (2)"]
    assert figures.to_svg(pictures.mpp_histogram(table), "mpp").startswith("<svg")


def test_histogram_has_a_row_a_scanner_and_counts_every_scan():
    table = rows(30).assign(mpp_x="0.25", mpp_source="file")
    table.loc[20:, ["scanner", "mpp_x"]] = ["B", "0.5"]
    table.loc[29, ["mpp_x", "mpp_source"]] = ["0.27", "assumed"]
    axes = pictures.mpp_histogram(table).axes
    assert [part.get_title(loc="left") for part in axes] == ["A: 20 scans", "B: 10 scans"]
    for part, expected in zip(axes, (20, 10), strict=True):
        assert sum(bar.get_height() for bar in part.patches) == expected
