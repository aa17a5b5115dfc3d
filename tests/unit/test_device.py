import subprocess
import sys
from types import SimpleNamespace

import pytest

from isoslide import device


def fake_nvidia_smi(folder, n):
    script = folder / "nvidia-smi"
    script.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: some card (UUID: GPU-{i})'\n" for i in range(n)))
    script.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_cpu_claims_nothing(tmp_path):
    environment = {}
    assert device.claim("cpu", environment, str(tmp_path)) == "cpu"
    assert environment == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"])
def test_the_schedulers_choice_stands(tmp_path, name):
    environment = {name: "3"}
    device.claim("cuda", environment, str(tmp_path))
    assert environment == {name: "3"}


def test_of_several_visible_gpus_a_free_one_is_claimed(monkeypatch, tmp_path):
    """In an allocation of a whole node all jobs see all its GPUs; locks go by the card, not by its number."""
    environment = fake_nvidia_smi(tmp_path, 4)
    monkeypatch.setenv("PATH", environment["PATH"])
    claims = [environment | {"CUDA_VISIBLE_DEVICES": "1,3"} for _ in range(2)]
    for claim in claims:
        device.claim("cuda", claim, str(tmp_path))
    assert [claim["CUDA_VISIBLE_DEVICES"] for claim in claims] == ["1", "3"]
    assert {path.name for path in tmp_path.glob("*.lock")} == {"isoslide-GPU-1.lock", "isoslide-GPU-3.lock"}


@pytest.mark.parametrize("visible", ["GPU-0,GPU-1", "0, 1"])
def test_a_card_has_one_lock_however_it_is_named(monkeypatch, tmp_path, visible):
    environment = fake_nvidia_smi(tmp_path, 2)
    monkeypatch.setenv("PATH", environment["PATH"])
    claims = [environment | {"CUDA_VISIBLE_DEVICES": visible}, dict(environment)]
    for claim in claims:
        device.claim("cuda", claim, str(tmp_path))
    assert claims[0]["CUDA_VISIBLE_DEVICES"].removeprefix("GPU-") == "0"
    assert claims[1]["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_listing_of_cards(monkeypatch, tmp_path):
    environment = fake_nvidia_smi(tmp_path, 2)
    monkeypatch.setenv("PATH", environment["PATH"])
    assert device.list_gpus(environment) == {"0": "GPU-0", "1": "GPU-1"}
    monkeypatch.setenv("PATH", "/nowhere")
    assert device.list_gpus({"PATH": "/nowhere"}) == {}


def test_no_gpu_fails_at_once(monkeypatch, tmp_path):
    environment = fake_nvidia_smi(tmp_path, 0)
    monkeypatch.setenv("PATH", environment["PATH"])
    with pytest.raises(device.DeviceError, match="no GPU on this machine"):
        device.claim("cuda", environment, str(tmp_path))


def test_two_jobs_take_two_gpus_and_the_end_of_a_job_frees_its_gpu(monkeypatch, tmp_path):
    environment = fake_nvidia_smi(tmp_path, 2)
    monkeypatch.setenv("PATH", environment["PATH"])
    program = (
        "import sys; sys.path.insert(0, 'scripts'); from isoslide import device; env = dict(PATH=sys.argv[1])\n"
        "device.claim('cuda', env, sys.argv[2]); print(env['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    )
    command = [sys.executable, "-c", program, environment["PATH"], str(tmp_path)]
    jobs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {job.stdout.readline().strip() for job in jobs} == {"0", "1"}
    jobs[0].kill()
    for job in jobs:
        job.communicate("\n")
    assert device.claim("cuda", environment, str(tmp_path)) == "cuda"
    assert environment["CUDA_VISIBLE_DEVICES"] in ("0", "1")


def test_the_gpu_is_named_with_its_uuid(monkeypatch):
    """Complaint F4: what the job runs on, not what it asked for."""
    torch = pytest.importorskip("torch")
    card = SimpleNamespace(name="some card", uuid="1234-ab")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    expected = {"device": "cuda", "name": "some card", "uuid": "GPU-1234-ab", "visible": "1"}
    assert device.describe("cuda") == expected
    assert device.describe("cpu")["uuid"] == ""
