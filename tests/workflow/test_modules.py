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
BEFORE = {  # rule: those whose results are its inputs
    "segment_tissue": ["check_slides"],
    "register_scans": ["segment_tissue"],
    "tile_scans": ["register_scans"],
    "extract_features": ["tile_scans"],
    "import_features": ["register_scans"],
    "train_models": ["make_splits", "extract_features"],
    "predict_scans": ["train_models"],
    "embed_tiles": ["train_models"],
    "draw_heatmaps": ["train_models"],
    "compare_scanners": ["draw_heatmaps"],
    "evaluate_predictions": ["predict_scans"],
    "evaluate_features": ["make_splits", "extract_features"],
    "evaluate_metadata": ["make_splits", "tile_scans"],
    "summarise_features": ["extract_features"],
    "export_models": ["evaluate_predictions", "summarise_features"],
    "write_report": ["evaluate_predictions", "evaluate_features", "evaluate_metadata", "embed_tiles"],
}


def read_rules():
    """{rule: (script, modules)} of the rules that run a script."""
    found = {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for text in re.split(r"^(?=rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            script = re.search(r'script=scripts\("(\w+\.py)"\)', text)
            if script:
                modules = set(re.findall(r'scripts\("isoslide/(\w+)\.py"\)', text))
                found[re.match(r"rule (\w+)", text)[1]] = (ROOT / "scripts" / script[1], modules)
    return found


RULES = read_rules()


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
    return RULES[rule][1].union(*map(listed, BEFORE.get(rule, [])))


@pytest.mark.parametrize("rule", RULES)
def test_modules_are_inputs(rule):
    allowed = SHARED | UNUSED.get(rule, set()) | (COLOURS if rule != "extract_features" else set())
    missing = reached(RULES[rule][0]) - listed(rule) - allowed
    assert not missing, f"add to the modules of rule {rule}, or say in BEFORE or UNUSED why not: {sorted(missing)}"


def test_modules_that_are_listed_are_imported():
    unused = {rule: modules - reached(script) for rule, (script, modules) in RULES.items()}
    assert not {rule: modules for rule, modules in unused.items() if modules}
