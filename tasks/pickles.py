"""Weights come as safetensors: a Python pickle may run any program when it is read, so none ever is."""

from __future__ import annotations

from pathlib import Path

from schema.errors import ConfigError

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def refuse_pickle(path: Path, what: str) -> None:
    """Refuse a file by its name, whether it is there or not.

    Args:
        what: names it in the sentence: "the base model".

    Raises:
        ConfigError: it is a pickle.
    """
    if path.suffix.lower() in _PICKLES:
        raise ConfigError(
            f"{what} {path} is a Python pickle, which may run any program when it is read: give it as .safetensors"
        )


def refuse_pickled_model(name: str) -> None:
    """Refuse a base model, a file or a diffusers folder, of which a part is there as a pickle alone.

    Of a hub id only the name can be looked at; its parts are then loaded from safetensors or not at all.

    Raises:
        ConfigError: it is pickled.
    """
    refuse_pickle(Path(name), "the base model")
    for part in (Path(name) / part for part in _PARTS):
        files = sorted(part.iterdir()) if part.is_dir() else []
        pickled = [file for file in files if file.suffix.lower() in _PICKLES]
        if pickled and not any(file.suffix == ".safetensors" for file in files):
            refuse_pickle(pickled[0], f"the base model's {part.name}")
