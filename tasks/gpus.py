"""GPUs of this machine, and the one that a process has for itself."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from schema.errors import ConfigError
from tasks.claims import Claim

VISIBLE = "CUDA_VISIBLE_DEVICES"


def pick_device(wanted: str) -> str:
    """The device to compute on; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: torch does not know the device, or cannot use it here; the sentence says why.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(
            f"there is no device {wanted}: set PIXELLOOP_DEVICE to auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if device.type == "cuda":
        _check_cuda(wanted, device.index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{wanted} is wanted, but this machine has none: set PIXELLOOP_DEVICE=auto")
    return wanted


def _check_cuda(wanted: str, index: int | None) -> None:
    import torch

    mend = "or set PIXELLOOP_DEVICE=auto"
    if torch.version.cuda is None:
        raise ConfigError(
            f"{wanted} is wanted, but this torch ({torch.__version__}) is built without CUDA: "
            f"install one that is, {mend}"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{wanted} is wanted, but no GPU answers: look whether nvidia-smi shows one and its driver knows CUDA "
            f"{torch.version.cuda}, for which this torch is built, {mend}"
        )
    if index is not None and index >= torch.cuda.device_count():
        raise ConfigError(
            f"{wanted} is wanted, but there are {torch.cuda.device_count()} GPUs, from cuda:0 on: {mend[3:]}"
        )


def visible() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def take(names: list[str], folder: Path | None = None) -> tuple[str, Claim] | None:
    """The first GPU that no other process of this user has, None where all are taken.

    Args:
        names: of those to choose from.
        folder: where claims lie; one for all of the user's programs on this machine if left out.
    """
    return next(((name, claim) for name in names if (claim := _claim(name, folder)) is not None), None)


def _claim(name: str, folder: Path | None) -> Claim | None:
    return Claim.take(
        (folder or Path(tempfile.gettempdir()) / f"pixelloop-gpus-{os.getuid()}") / f"{name.replace('/', '-')}.lock"
    )
