"""Encode pictures to latents once and cache them on disk by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tasks.training.checkpoint import write_whole
from tasks.training.dataset import Placement, load_picture

_PICTURES_PER_BATCH = 16  # chosen by hand: bounds the VAE's memory, which grows with the batch


@dataclass(frozen=True)
class View:
    """Describe how a picture appears in training, without anything random."""

    path: Path
    placement: Placement
    resize_interpolation: str | None = "nearest"
    mirrored: bool = False

    @property
    def transform(self) -> str:
        """Return the description without the file as text, for the cache key."""
        return f"{self.placement.target}/{self.mirrored}/{self.resize_interpolation}"

    def load(self) -> npt.NDArray[np.float32]:
        """Load the picture as (3, height, width) float32 in [-1, 1]."""
        picture = load_picture(self.path, self.placement, self.resize_interpolation)
        return picture[..., ::-1].copy() if self.mirrored else picture


class LatentCache:
    """Encode pictures with a VAE and cache the result.

    The key is a hash of the picture's bytes, the VAE's weights and the transform. Entries therefore never become
    stale, and parallel trials may share the folder.
    """

    def __init__(self, vae: AutoencoderKL, folder: Path | None, device: torch.device) -> None:
        """Prepare the cache; `folder` None disables it."""
        self._vae, self._cache, self._device = vae, TensorCache(folder), device
        self._vae_key = digest(vae) if folder is not None else ""

    def encode(self, views: Sequence[View]) -> Tensor:
        """Return the mean and standard deviation of each picture's posterior, unscaled.

        Args:
            views: N pictures, all resized to the same size.

        Returns:
            (N, 2, C, height / f, width / f) float32 on the CPU.

        Raises:
            BadDataError: a file is not a picture.
        """
        keys = [self._cache.key(view.path.read_bytes(), f"{self._vae_key}/{view.transform}") for view in views]
        found = {i: moments for i, key in enumerate(keys) if (moments := self._cache.read(key)) is not None}
        missing = [i for i in range(len(views)) if i not in found]
        for start in range(0, len(missing), _PICTURES_PER_BATCH):
            some = missing[start : start + _PICTURES_PER_BATCH]
            pictures = torch.stack([torch.from_numpy(views[i].load()) for i in some])
            for i, moments in zip(some, self.encode_pictures(pictures).cpu(), strict=True):
                found[i] = moments
                self._cache.write(keys[i], moments)
        return torch.stack([found[i] for i in range(len(views))])

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return mean and standard deviation (N, 2, C, H / f, W / f), on the device, of pictures in [-1, 1]."""
        posterior = self._vae.encode(pictures.to(self._device, self._vae.dtype)).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1).float()


class TensorCache:
    """Store tensors on disk, each under a hash of everything it was made from."""

    def __init__(self, folder: Path | None) -> None:
        """Prepare the cache; `folder` None disables it."""
        self._folder = folder

    def key(self, content: bytes, made_by: str) -> str:
        """Return the key of the tensor that `made_by` computes from `content`."""
        return hashlib.sha256(hashlib.sha256(content).digest() + made_by.encode()).hexdigest()

    def read(self, key: str) -> Tensor | None:
        """Return the cached tensor, or None."""
        if self._folder is None:
            return None
        try:
            return load_file(self._file(key))["moments"]
        except FileNotFoundError:
            return None

    def write(self, key: str, tensor: Tensor) -> None:
        """Save a tensor atomically: other processes may write the same key at the same moment."""
        if self._folder is None:
            return
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, save({"moments": tensor.contiguous()}))

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key[2:34]}.safetensors"  # 256 sub-folders keep each of them small


def digest(*modules: nn.Module) -> str:
    """Return a SHA-256 over the modules' weights and their names, computed on all cores."""
    weights = [item for module in modules for item in sorted(module.state_dict().items())]
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        parts = pool.map(lambda item: f"{item[0]}:{item[1].dtype}:{_hash(item[1])}", weights)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _hash(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
