"""Pictures encoded once, kept on disk under what they were made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.training.dataset import load_picture

_BATCH = 16


class LatentCache:
    """Encodes pictures, and finds again what was encoded before.

    The key of a picture holds its bytes, the VAE's weights and the transform, so nothing stale is ever
    used and parallel trials may share the folder.
    """

    def __init__(
        self, vae: AutoencoderKL, folder: Path | None, device: torch.device, resize_interpolation: str = "nearest"
    ) -> None:
        """Args: folder: None keeps nothing on disk."""
        self._vae, self._folder, self._device, self._method = vae, folder, device, resize_interpolation
        self._vae_key = _digest(vae) if folder is not None else ""

    @torch.no_grad()
    def encode(self, paths: Sequence[Path], size: tuple[int, int], flip: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of each picture, unscaled.

        Args:
            paths: N pictures.
            size: width and height in pixels that they are brought to.
            flip: mirror them left to right.

        Returns:
            Two tensors (N, C, height / f, width / f) on the CPU.

        Raises:
            BadDataError: a file is no picture.
        """
        found = [self._read(path, size, flip) for path in paths]
        missing = [i for i, moments in enumerate(found) if moments is None]
        for start in range(0, len(missing), _BATCH):
            some = missing[start : start + _BATCH]
            pictures = torch.stack([torch.from_numpy(load_picture(paths[i], *size, self._method)) for i in some])
            if flip:
                pictures = pictures.flip(-1)
            posterior = self._vae.encode(pictures.to(self._device, self._vae.dtype)).latent_dist
            for i, mean, std in zip(some, posterior.mean.float().cpu(), posterior.std.float().cpu(), strict=True):
                found[i] = torch.stack([mean, std])
                self._write(paths[i], size, flip, found[i])
        moments = torch.stack([m for m in found if m is not None])  # (N, 2, C, h, w)
        return moments[:, 0], moments[:, 1]

    def _file(self, path: Path, size: tuple[int, int], flip: bool) -> Path | None:
        if self._folder is None:
            return None
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        key = hashlib.sha256(f"{content}/{self._vae_key}/{size}/{flip}/{self._method}".encode()).hexdigest()
        return self._folder / key[:2] / f"{key[2:34]}.safetensors"

    def _read(self, path: Path, size: tuple[int, int], flip: bool) -> Tensor | None:
        file = self._file(path, size, flip)
        return load_file(file)["moments"] if file is not None and file.exists() else None

    def _write(self, path: Path, size: tuple[int, int], flip: bool, moments: Tensor | None) -> None:
        file = self._file(path, size, flip)
        if file is None or moments is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        save_file({"moments": moments.contiguous()}, part)
        part.replace(file)


def _digest(vae: AutoencoderKL) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
