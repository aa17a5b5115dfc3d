import html.parser
import re

import fake_results
import pytest

import write_report
from isoslide import report

VOID = {"meta", "img", "br", "path", "use"}


class Checker(html.parser.HTMLParser):
    """Follows open tags, collects ids, links and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.errors = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("href", "src", "xlink:href") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    fake_results.write(root, patients=30)
    fake_results.evaluate(root)
    return write_report.read_run(write_report.parse_args(fake_results.report_arguments(root)))


@pytest.fixture(scope="module")
def page(run):
    return report.render(run)


def parsed(text):
    checker = Checker()
    checker.feed(text)
    return checker


def test_the_page_is_sound_html_and_needs_no_network(page):
    checker = parsed(page[0])
    assert not checker.errors
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    internal = [link[1:] for link in checker.links if link.startswith("#")]
    assert set(internal) <= set(checker.ids)
    assert all(link.startswith(("#", "data:image/jpeg;base64,", "figures/")) for link in checker.links)
    files = {f"figures/{d.name}.{kind}" for d in page[1] for kind in ("svg", "pdf", "tsv")}
    assert {link for link in checker.links if link.startswith("figures/")} == files
    assert "@import" not in page[0]
    assert len(page[0].encode()) < 5e6


def test_the_first_screen_answers_in_words(page, run):
    text = " ".join(" ".join(parsed(page[0]).text).split())
    start = text[: text.index("The same as a table")]
    assert "robust against paired: more consistent in response and survival" in start
    assert "collapsed in response" in start
    assert "Its robustness figures mean nothing" in start
    result = run.results[0]
    row = result.comparisons.query("arm == 'robust' and metric == 'inconsistency' and scope == 'pooled'").iloc[0]
    assert f"{row['difference']:.3f}".replace("-", "−") in start


def test_every_number_of_the_tables_is_on_the_page(page, run):
    text = " ".join(parsed(page[0]).text)
    for result in run.results:
        means = result.metrics[(result.metrics["seed"] == "mean") & (result.metrics["scope"] == "pooled")]
        for row in means[means["metric"].isin(("auc", "c_index", "inconsistency", "rmse", "spread"))].to_dict(
            "records"
        ):
            assert f"{row['value']:.3f}" in text


def test_banner_collapse_losses_and_limits_are_said(page):
    text = " ".join(" ".join(parsed(page[0]).text).split())
    for words in (
        "SIMULATED",
        "robust_reference has collapsed",
        "the file ends in the middle of a tile",
        "V = 0.",
        "limit of 5.0 µm",
        "P05-1: largest error 7.90 µm",
        "Differences below the spread over seeds mean little",
        "not a reproduction",
        "training.steps",
        "weights 0123abcd",
        "too few neighbours",
        "A model that never sees the tissue tells response from",
        "P11-1_C: no_tissue (tissue)",
        "permutation test over patients",
        "Thresholds are chosen on few tuning patients",
    ):
        assert words in text, words
    assert "reproduces" not in text


def test_drawings_have_names_of_their_own_that_are_good_file_names(page):
    names = [drawing.name for drawing in page[1]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def bare(run, **changes):
    """Return the run with one arm, no comparison, no stage tables and no pictures."""
    result = run.results[0]
    metrics = result.metrics[result.metrics["arm"] == "mixed"]
    alone = type(result)("response", result.encoder, metrics, result.comparisons.iloc[:0])
    values = {"config": run.config, "sheet": run.sheet, "stages": {}, "splits": {"response": run.splits["response"]}}
    return type(run)(**{**values, "results": [alone], **changes})


def test_a_run_without_comparison_registration_or_pictures_still_gives_a_page(run):
    page, drawings = report.render(bare(run))
    text = " ".join(" ".join(parsed(page).text).split())
    assert "There is no comparison" in text
    assert "Registration error" not in text
    again, _ = report.render(bare(run))
    assert again == page
    assert drawings


def test_scans_with_heatmaps_are_links(run, page):
    assert "#heatmaps" not in page[0]
    text = report.render(bare(run, config=run.config | {"heatmaps": ["S 1&2"]}))[0]
    links = parsed(text).links
    assert {"#heatmaps", "../viewer/S%201%262.html", "../viewer/thumbnails/S%201%262.jpg"} <= set(links)
    assert "S 1&amp;2" in text


def test_names_that_look_like_markup_are_escaped(run):
    sheet = run.sheet.assign(exclude="<script>alert(1)</script>", scanner="<b>")
    page, _ = report.render(bare(run, sheet=sheet, notes=["<i>"]))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<i>" not in page


def test_a_forest_of_many_rows_shows_one_arm(run):
    rows = [
        {"task": task, "encoder": "e", "arm": arm, "control": "paired", "metric": name, "name": name}
        | {"difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.5, "holm": 1.0, "collapsed": ""}
        for task in (f"t{i}" for i in range(25))
        for arm in ("mixed", "robust")
        for name in ("inconsistency", "auc")
    ]
    drawn = []
    report.forests(run, rows, lambda *parts: drawn.append(parts))
    assert [set(table["arm"]) for _, _, table, _ in drawn] == [{"robust"}] * 2
    assert all("Only robust, for space" in caption for *_, caption in drawn)
    drawn.clear()
    report.forests(run, rows[:8], lambda *parts: drawn.append(parts))
    assert set(drawn[0][2]["arm"]) == {"mixed", "robust"}
