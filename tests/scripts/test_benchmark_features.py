import pytest
from torch import nn

import benchmark_features
from isoslide import encoders, networks


class Tiny(nn.Module):
    """As many numbers as the entry says, from the mean colour."""

    def __init__(self, dim=1024):
        super().__init__()
        self.layer = nn.Linear(3, dim)

    def forward(self, pixels):
        return self.layer(pixels.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "uni"])
def test_a_small_run_measures_both(tmp_path, monkeypatch, name):
    """The embedded encoder as it is; UNI, whose weights are not here, as a small network with random weights."""
    monkeypatch.setattr(benchmark_features, "MODEL_TILES", {"cpu": 8})
    if name == "uni":
        monkeypatch.setattr(networks, "timm_network", lambda entry: Tiny())
        monkeypatch.setattr(networks, "load", lambda entry, path: Tiny())
        monkeypatch.setitem(encoders.POOLINGS, "cls", lambda network, pixels: network(pixels))
    output = tmp_path / "features.md"
    benchmark_features.main(["--encoders", name, "--side=1100", "--scans=2", "--rounds=1", f"--output={output}"])
    row = output.read_text().splitlines()[-1].strip("| ").split(" | ")
    assert row[:3] == [name, "4", "float32"]
    alone, stage, share, alone_ms, stage_ms = (float(value) for value in row[3:])
    assert share == pytest.approx(stage / alone, abs=0.02)
    assert min(alone_ms, stage_ms) > 0


def fake_trident(path, lines):
    path.write_text("#!/bin/sh\n" + lines)
    path.chmod(0o755)
    return str(path)


def test_tridents_own_extraction_stands_beside_ours(tmp_path, monkeypatch):
    """Its environment is played by a script that prints what benchmark_trident.py prints: 10 tiles in 4 seconds."""
    monkeypatch.setattr(benchmark_features, "MODEL_TILES", {"cpu": 8})
    monkeypatch.setattr(networks, "timm_network", lambda entry: Tiny())
    monkeypatch.setattr(networks, "load", lambda entry, path: Tiny())
    monkeypatch.setitem(encoders.POOLINGS, "cls", lambda network, pixels: network(pixels))
    python = fake_trident(tmp_path / "python", """echo warming; echo '{"tiles": 10, "seconds": 4, "cpu": 5}'\n""")
    output = tmp_path / "features.md"
    options = ["--encoders", "uni", "--side=1100", "--scans=1", "--rounds=1", f"--output={output}", "--trident"]
    benchmark_features.main([*options, python])
    assert output.read_text().splitlines()[-1].strip("| ").split(" | ")[-2:] == ["2.5", "500.00"]
    python = fake_trident(tmp_path / "python", "echo 'ImportError: no trident' >&2; exit 1\n")
    with pytest.raises(SystemExit, match="TRIDENT ended with 1: ImportError: no trident"):
        benchmark_features.main([*options, python])
    with pytest.raises(SystemExit, match="no name of TRIDENT's is known for encoder efficientnet_lite0"):
        benchmark_features.main(["--encoders=efficientnet_lite0", *options[2:], python])
