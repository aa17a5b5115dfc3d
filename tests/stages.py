"""The slide stages one after another, through the scripts, on a folder of test slides: sheet to tiles or features."""

import json
from pathlib import Path

import check_slides
import collect_status
import extract_features
import segment_tissue
import tile_scans
from isoslide import config, status

ROOT = Path(__file__).resolve().parents[1]
VIEW = {"tile_px": 224, "mpp": 0.5}


def settings(block: str, **changes) -> str:
    """Return a block of the configuration with its defaults, as the rules pass it."""
    least = {"sheet": "slides.tsv", "encoders": ["efficientnet_lite0"]}
    return json.dumps(config.complete(least, ROOT / "workflow/schemas/config.schema.yaml")[block] | changes)


class Stages:
    """Runs stages in a folder; `rows` are lines of the sheet: scan, path, scanner and more by name."""

    def __init__(self, folder: Path, rows: list[dict[str, str]]):
        self.folder = folder
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = ["\t".join(names), *("\t".join(str(row.get(name, "")) for name in names) for row in rows)]
        (folder / "slides.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def table(self, stage: str):
        """Return a stage's status table by scan."""
        return status.read(self.folder / f"{stage}.tsv").set_index("scan")

    def checks(self, **changes):
        """Run check_slides."""
        check_slides.main(
            [
                *("--sheet", str(self.folder / "slides.tsv"), "--settings", settings("checks", **changes)),
                *("--output", str(self.folder / "checks.tsv")),
            ]
        )
        return self.table("checks")

    def tissue(self, threads="2", **changes):
        """Run segment_tissue."""
        segment_tissue.main(
            [
                *("--checks", str(self.folder / "checks.tsv"), "--settings", settings("tissue", **changes)),
                *("--results", str(self.folder / "tissue"), "--threads", threads),
                *("--output", str(self.folder / "tissue.tsv")),
            ]
        )
        return self.table("tissue")

    def tiles(self, view=VIEW, **changes):
        """Run tile_scans; no scan is registered."""
        status.write(self.folder / "registrations.tsv", [])
        tile_scans.main(
            [
                *("--checks", str(self.folder / "checks.tsv"), "--tissue", str(self.folder / "tissue.tsv")),
                *("--registrations", str(self.folder / "registrations.tsv"), "--view", json.dumps(view)),
                *("--settings", settings("tiles", **changes), "--results", str(self.folder / "tiles")),
                *("--output", str(self.folder / "tiles.tsv")),
            ]
        )
        return self.table("tiles")

    def features(self):
        """Run extract_features with the encoder that is part of the installation."""
        extract_features.main(
            [
                *("--checks", str(self.folder / "checks.tsv"), "--tiles", str(self.folder / "tiles.tsv")),
                *("--encoder", "efficientnet_lite0", "--registry", str(ROOT / "resources/encoders.yaml")),
                *("--weights", "unused", "--results", str(self.folder / "features")),
                *("--output", str(self.folder / "features.tsv")),
            ]
        )
        return self.table("features")

    def collect(self, stage: str, policy: str, expect: int):
        """Run collect_status on a stage's table."""
        collect_status.main(
            [
                *("--tables", str(self.folder / f"{stage}.tsv"), "--stage", stage, "--expect", str(expect)),
                *("--on-bad-slide", policy, "--output", str(self.folder / f"all_{stage}.tsv")),
            ]
        )


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every visible file under a folder by its name; logs of a killed job's rests are hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
