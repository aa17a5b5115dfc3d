"""A loaded encoder: pixels of tiles, as they were read, to feature vectors, on the CPU or a GPU."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from isoslide import encoders, keys, networks, weights
from isoslide.registry import Encoder
from isoslide.weights import EncoderError


class TileEncoder:
    """A loaded encoder.

    Attributes:
        entry: its registry entry.
        weights_hash: first 16 hex digits of the SHA-256 of the weights file.
    """

    def __init__(self, entry: Encoder, weights_folder: str | Path, device: str = "cpu"):
        path = weights.weights_path(entry, weights_folder)
        self.weights_hash = weights.checked_hash(entry, path)[:16]
        self.entry = entry
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else getattr(torch, entry.precision)
        network = networks.load(entry, path).eval().requires_grad_(False)
        if self.device.type == "cpu" and ":" not in entry.id:  # networks of timm: and trident: may run in another order
            encoders.fold_batch_norms(network)  # 4.5 instead of 10 ms a tile for EfficientNet-Lite0
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self._mean = torch.tensor(entry.mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(entry.std, device=self.device).view(1, 3, 1, 1) * 255
        logging.info("encoder %s on %s, weights %s", entry.id, self.device, self.weights_hash)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return features (n, dim) float32 on the CPU for tiles (n, tile_px, tile_px, 3) uint8 RGB.

        Raises:
            EncoderError: tiles of another size than the encoder wants, or features of another length than it gives.
        """
        return self.launch(tiles).cpu()

    @torch.inference_mode()
    def launch(self, tiles: Tensor) -> Tensor:
        """Return what `__call__` does, on the device; a GPU may still be working on it."""
        if tiles.shape[1:3] != (self.entry.tile_px, self.entry.tile_px):
            raise EncoderError(f"{self.entry.id} wants tiles of {self.entry.tile_px} px, not {tuple(tiles.shape[1:3])}")
        pixels = encoders.fit(tiles.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float(), self.entry)
        pixels = ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = encoders.POOLINGS[self.entry.pooling](self.network, pixels)
        if self.entry.dim not in (0, features.shape[1]):
            raise EncoderError(f"{self.entry.id}: {features.shape[1]} features, the registry says {self.entry.dim}")
        return features.float()

    @property
    def precision(self) -> str:
        """What the network computes in."""
        return str(self.dtype).removeprefix("torch.")


def code(entry: Encoder) -> str:
    """Return the hash of the code that this entry's features come from; other loaders and poolings do not count."""
    return keys.content_key(around=keys.code_hash(TileEncoder), inside=encoders.code(entry))
