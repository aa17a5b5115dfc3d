"""What a GPU job does, without a GPU: batches before the device, short memory, the order of things."""

import threading
from types import SimpleNamespace

import pytest
import torch

from isoslide import extraction, pace


class Device:
    """Stands in for a GPU and its encoder: notes what is launched and waited for."""

    def __init__(self, limit=1000):
        self.device, self.limit = SimpleNamespace(type="cuda"), limit
        self.events, self.running = [], 0

    @torch.inference_mode()
    def launch(self, images):
        if len(images) > self.limit:
            raise torch.OutOfMemoryError
        self.running += 1
        self.events.append(f"launch {len(images)}, {self.running} running")
        return images.float().mean(dim=(1, 2, 3))[:, None]

    def event(self):
        return SimpleNamespace(record=lambda: None, synchronize=self.done)

    def done(self):
        self.running -= 1


@pytest.fixture
def gpu(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(extraction, "_pinned", torch.empty_like)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return device


def images(n):
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 2, 2, 3)


def test_a_gpu_has_two_batches_before_it_and_never_more(gpu):
    feeder = extraction.Feeder(gpu, batch=4)
    parts = feeder.feed(images(18))
    assert gpu.events == ["launch 4, 1 running", *["launch 4, 2 running"] * 3, "launch 2, 2 running"]
    feeder.wait(feeder.launched)
    assert gpu.running == 0
    assert torch.cat(parts)[:, 0].tolist() == list(range(18))


@pytest.mark.parametrize("batch", [16, 5])
def test_memory_that_is_short_halves_the_batch_and_loses_no_tile(gpu, batch):
    gpu.limit = 3
    feeder = extraction.Feeder(gpu, batch)
    assert torch.cat(feeder.feed(images(18)))[:, 0].tolist() == list(range(18))
    assert feeder.batch == 2
    gpu.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        feeder.feed(images(2))


class Scan:
    """Four to eighteen tiles; reads are noted."""

    def __init__(self, name, n_tiles, first, notes):
        self.row, self.n_tiles, self.first, self.notes = {"scan": name}, n_tiles, first, notes
        self.given_up, self.open = False, True

    def read(self, start, stop):
        assert self.open
        self.notes.append((threading.get_ident(), self.row["scan"], start))
        return (images(self.n_tiles) + self.first)[start:stop].numpy()

    def close(self):
        self.open = False

    def in_order(self, features):
        return features


def test_scans_come_out_whole_and_in_order_and_the_device_is_never_left_without_work(gpu):
    """When a scan comes out, a batch of the next one is running; reads are the threads', runs grow from one batch."""
    notes = []
    scans = [Scan("a", 18, 0, notes), Scan("b", 4, 100, notes), Scan("c", 6, 200, notes)]
    feeder = extraction.Feeder(gpu, batch=4)
    found = {}
    for scan, (features,) in extraction.encode_scans([(scan, [feeder]) for scan in scans], 2, pace.Clock()):
        found[scan.row["scan"]] = features[:, 0].tolist()
        assert (gpu.running > 0) == (scan.row["scan"] != "c")
        assert not scan.open
    assert found == {"a": list(range(18)), "b": list(range(100, 104)), "c": list(range(200, 206))}
    assert sorted(start for _, name, start in notes if name == "a") == [0, 4, 12]
    assert threading.get_ident() not in {thread for thread, _, _ in notes}
