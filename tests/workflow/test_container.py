"""The container recipe agrees with the environment files and with the repository; nothing is built here."""

import re
import shlex
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "envs/Dockerfile").read_text()
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n", " ", TEXT).splitlines()
    if line.strip() and not line.startswith("#")
]


def arguments(name):
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def environments():
    """The environments that the recipe copies: those of the rules and of snakemake itself, none for development."""
    return [yaml.safe_load((ROOT / path).read_text()) for path in shlex.split(arguments("COPY")[0])[:-1]]


def test_only_known_instructions():
    assert {name for name, _ in INSTRUCTIONS} == {"FROM", "COPY", "RUN", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert INSTRUCTIONS[0][0] == "FROM"


def test_python_is_that_of_the_environments():
    (base,) = arguments("FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-bookworm", base)[1]
    assert {content["dependencies"][0] for content in environments()} == {f"python={version}"}


def test_every_copied_file_exists_and_the_workflow_is_whole():
    copied = [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {"Snakefile", "workflow", "scripts", "resources", "envs/base.yaml"} <= set(copied)
    named = {
        f"envs/{name}"
        for path in ROOT.glob("workflow/rules/*.smk")
        for name in re.findall(r"envs/(\w+\.yaml)", path.read_text())
    }
    assert named - {"envs/trident.yaml"} <= set(copied)  # TRIDENT's packages are older and stay apart


def test_it_installs_exactly_what_the_environments_say(tmp_path):
    """The command of the recipe that makes the list of packages, run here on the files that it copies."""
    (run,) = arguments("RUN")
    command = run.split("&&")[0].replace("/isoslide/", f"{tmp_path}/")
    (tmp_path / "envs").mkdir()
    for path in shlex.split(arguments("COPY")[0])[:-1]:
        (tmp_path / path).write_text((ROOT / path).read_text())
    subprocess.run(["sh", "-c", command], check=True)
    wanted = {package for content in environments() for package in content["dependencies"][-1]["pip"]}
    assert (tmp_path / "requirements.txt").read_text().split() == sorted(wanted)
    assert "-r /isoslide/requirements.txt" in run
