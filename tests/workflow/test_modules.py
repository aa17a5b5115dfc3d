"""Modules that a rule's script imports are inputs of the rule, or of a rule before it: else an edit runs nothing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "scripts/isoslide"
# What they decide is no number: how files are written, which GPU is taken, what is refused. The registry and the sheet
# come as parameters.
SHARED = {"atomic", "cli", "device", "keys", "known_slide", "registry", "sheet", "status", "weights"}
UNUSED = {  # imported, but without a say in what the rule writes
    "collect_status": {"dicom_levels", "icc", "jpeg_tiles", "openslide_fast", "slide", "slide_files"}
    | {"stored_tiles", "tiff_levels"},  # by way of `checks`, which opens slides elsewhere
    "draw_contact_sheet": {"figures"},
    "evaluate_features": {"metrics"},  # the error `Undefined` alone
}
COLOURS = {"icc"}  # only what encoders see is ever converted
HELPERS = {  # functions of lookups.smk that return the results of a rule
    "tiles_of_encoder": "tile_scans",
    "features_of_arm": "extract_features",
    "registrations_of_import": "register_scans",
    "summaries_of_arm": "summarise_features",
}


def folders(text):
    """Where the paths of an input or output block begin; a stage's table counts as those of its batches."""
    paths = re.findall(r'(?<!ancient\()"(results/[^"]+)"', text)
    return {re.sub(r"\.\w+$", "/", path).partition("{")[0] for path in paths}


def read_rules():
    """{rule: (script, modules, folders of inputs, helpers of inputs, folders of outputs)} of those with a script."""
    found = {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for text in re.split(r"^(?=(?:use )?rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            script = re.search(r'script=scripts\("(\w+\.py)"\)', text)
            if script:
                modules = set(re.findall(r'scripts\("isoslide/(\w+)\.py"\)', text))
                taken, _, made = text.partition("    output:\n")
                made = re.split(r"^    \w+:", made, maxsplit=1, flags=re.MULTILINE)[0]
                helpers = {name for name in HELPERS if re.search(rf"\b{name}\b", taken)}
                rule = re.match(r"rule (\w+)", text)[1]
                found[rule] = (ROOT / "scripts" / script[1], modules, folders(taken), helpers, folders(made))
    return found


RULES = read_rules()


def before(rule):
    """Rules whose results are inputs of this one."""
    _, _, taken, helpers, _ = RULES[rule]
    makers = {other for other, (*_, made) in RULES.items() if made & taken and other != rule}
    return makers | {HELPERS[name] for name in helpers}


def imported(path):
    """Names of the package's modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "isoslide":
            names |= {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isoslide."):
            names.add(node.module.split(".")[1])
    return names


def reached(path):
    found, left = set(), imported(path)
    while left:
        name = left.pop()
        found.add(name)
        left |= imported(PACKAGE / f"{name}.py") - found
    return found


def listed(rule):
    """Modules of a rule and of all rules before it: where one of those runs, what follows runs too."""
    return RULES[rule][1].union(*map(listed, before(rule)))


@pytest.mark.parametrize("rule", RULES)
def test_modules_are_inputs(rule):
    allowed = SHARED | UNUSED.get(rule, set()) | (COLOURS if rule != "extract_features" else set())
    missing = reached(RULES[rule][0]) - listed(rule) - allowed
    assert not missing, f"add to the modules of rule {rule}, or to UNUSED with a reason: {sorted(missing)}"


def test_modules_that_are_listed_are_imported():
    unused = {rule: modules - reached(script) for rule, (script, modules, *_) in RULES.items()}
    assert not {rule: modules for rule, modules in unused.items() if modules}


def test_the_order_of_the_rules_is_read_right():
    assert before("check_slides") == set()
    assert before("segment_tissue") == {"check_slides"}
    assert before("tile_scans") == {"check_slides", "segment_tissue", "register_scans"}
    assert before("extract_features") == {"check_slides", "tile_scans"}
    assert before("train_models") == {"make_splits", "extract_features"}
    assert {"predict_scans", "train_models"} <= before("evaluate_predictions")
