"""The environment files are valid, agree with each other, and say what is installed."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TRIDENT = ROOT / "envs/trident.yaml"  # stays apart: its versions are older
FILES = sorted(set((ROOT / "envs").glob("*.yaml")) - {TRIDENT})
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def requirements(path):
    """The pip block of an environment as {package: version}."""
    content = yaml.safe_load(path.read_text())
    assert content["channels"] == ["conda-forge", "nodefaults"]
    *conda, block = content["dependencies"]
    assert conda == ["python=3.11", "pip"]
    return dict(item.split("==") for item in block["pip"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_installed_is_what_the_file_says(path):
    for package, version in requirements(path).items():
        assert importlib.metadata.version(package) == version, package


def test_files_agree_on_versions():
    seen = {}
    for path in FILES:
        for package, version in requirements(path).items():
            assert seen.setdefault(package, version) == version, package


def test_every_environment_of_a_rule_exists():
    named = {name for path in RULES for name in re.findall(r'"\.\./\.\./envs/([^"]+)"', path.read_text())}
    assert named == {"base.yaml", "torch.yaml", "trident.yaml"}
    assert named <= {path.name for path in [*FILES, TRIDENT]}


def test_trident_is_pinned_and_stays_apart():
    *_, block = yaml.safe_load(TRIDENT.read_text())["dependencies"]
    first, *others = block["pip"]
    assert re.fullmatch(r"trident @ git\+https://github.com/mahmoodlab/TRIDENT@[0-9a-f]{40}", first)
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", item) for item in others)
    assert "filter-out envs/trident.yaml" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_an_example_and_needs_no_torch(path):
    program = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    path_line = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
    done = subprocess.run([sys.executable, "-c", path_line + program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python scripts/{path.name}" in done.stdout


def test_the_snakefile_imports_light_modules_only():
    program = (
        "import sys; sys.path.insert(0, 'scripts'); from isoslide import cli, config, model_folder, registry, sheet\n"
        "heavy = {'torch', 'openslide', 'cv2', 'h5py', 'scipy', 'sklearn', 'matplotlib', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
