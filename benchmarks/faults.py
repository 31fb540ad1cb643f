"""Healthy settings of the demo's tiny model, and faults planted into them: in the setting or in the data set."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from schema.parameters import Parameters

Change = Callable[[Parameters], Parameters]
Plant = Callable[[Path, random.Random], None]

PICTURES = 48
_CELL = 4  # pixels of the demo's 64


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: the label, which the diagnosis never sees.
        factors: what a right diagnosis blames: parameters, or findings of the data's audit.
        change: the faulty setting, from a healthy one.
        plant: spoils the data set in a folder.
    """

    name: str
    factors: frozenset[str]
    change: Change = field(default=lambda p: p)
    plant: Plant | None = None


def healthy(seed: int) -> Parameters:
    """A setting that trains well; different ones for different seeds."""
    rng = random.Random(f"healthy/{seed}")
    rank = rng.choice((8, 16, 32))
    return {
        "learning_rate": round(10 ** rng.uniform(-2.6, -2.1), 6),
        "network_dim": rank,
        "network_alpha": float(rank),
        "conv_dim": rng.choice((8, 16)),
        "conv_alpha": 8.0,
        "shuffle_caption": True,
        "keep_tokens": rng.choice((1, 2)),
        "caption_dropout_rate": rng.choice((0.0, 0.05, 0.1)),
        "noise_offset": rng.choice((None, 0.02, 0.04)),
        "max_train_epochs": rng.choice((2, 3, 4)),
        "num_repeats": 2,
        "train_batch_size": 16,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0.05,
        "seed": seed,
    }


def _set(**values: bool | float) -> Change:
    return lambda p: {**p, **values}


def _rate_times(factor: float) -> Change:
    return lambda p: {**p, "learning_rate": float(p["learning_rate"] or 0) * factor}


def shuffle_captions(folder: Path, rng: random.Random, share: float = 1.0) -> None:
    """Move each of a share of the captions to another picture."""
    files = sorted(folder.glob("*.txt"))
    moved = rng.sample(files, round(share * len(files)))
    texts = [file.read_text(encoding="utf-8") for file in moved]
    for file, text in zip(moved, texts[1:] + texts[:1], strict=True):
        file.write_text(text, encoding="utf-8")


def part_of_captions(folder: Path, rng: random.Random) -> None:
    """Wrong captions for three pictures in ten."""
    shuffle_captions(folder, rng, 0.3)


def share_codes(folder: Path, _: random.Random) -> None:
    """Give hair the background's hex code, in every caption."""
    for file in folder.glob("*.txt"):
        tags = file.read_text(encoding="utf-8").strip().split(", ")
        code = next(tag for tag in tags if "background" in tag).split("(")[1]
        tags = [tag.split("(")[0] + "(" + code if tag.split(" (")[0].endswith("hair") else tag for tag in tags]
        file.write_text(", ".join(tags) + "\n", encoding="utf-8")


def blur(folder: Path, _: random.Random) -> None:
    """Soften every picture."""
    for file in folder.glob("*.png"):
        with Image.open(file) as image:
            soft = image.convert("RGB").filter(ImageFilter.GaussianBlur(1.5))
        soft.save(file)


def few(folder: Path, rng: random.Random) -> None:
    """Leave four pictures."""
    files = sorted(folder.glob("*.png"))
    for file in rng.sample(files, len(files) - 4):
        file.unlink()
        file.with_suffix(".txt").unlink()


def earrings(folder: Path, rng: random.Random) -> None:
    """An earring on one side, named with the side in the caption."""
    for file in sorted(folder.glob("*.png")):
        side = rng.choice(("left", "right"))
        with Image.open(file) as image:
            picture = image.convert("RGB")
        x = 3 * _CELL if side == "left" else 12 * _CELL
        ImageDraw.Draw(picture).rectangle((x, 8 * _CELL, x + _CELL - 1, 10 * _CELL - 1), fill="#ffd700")
        picture.save(file)
        caption = file.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8").strip()
        caption.write_text(f"{text}, gold earring on the {side} (#ffd700)\n", encoding="utf-8")


FAULTS: tuple[Fault, ...] = (
    Fault("learning rate x30", frozenset({"learning_rate"}), _rate_times(30)),
    Fault("learning rate /30", frozenset({"learning_rate"}), _rate_times(1 / 30)),
    Fault("rank too high", frozenset({"network_dim"}), _set(network_dim=512, network_alpha=512.0)),
    Fault("rank too low", frozenset({"network_dim"}), _set(network_dim=1, network_alpha=1.0)),
    Fault("shuffled captions", frozenset({"caption_mismatch"}), plant=shuffle_captions),
    Fault("one hex code for two features", frozenset({"shared_code"}), plant=share_codes),
    Fault("wrong captions for part", frozenset({"caption_mismatch"}), plant=part_of_captions),
    Fault("keep_tokens 0 with shuffle", frozenset({"keep_tokens"}), _set(keep_tokens=0, shuffle_caption=True)),
    Fault("flip on asymmetric", frozenset({"flip_aug"}), _set(flip_aug=True), earrings),
    Fault("colour augmentation", frozenset({"color_aug"}), _set(color_aug=True, cache_latents=False)),
    Fault("blurred pictures", frozenset({"soft_edges"}), plant=blur),
    Fault("too few pictures", frozenset({"few_pictures"}), _set(num_repeats=24), few),
    Fault("too many epochs", frozenset({"max_train_epochs"}), _set(max_train_epochs=16)),
    Fault("noise_offset too high", frozenset({"noise_offset"}), _set(noise_offset=0.6)),
    Fault("conv alpha mismatch", frozenset({"conv_alpha", "conv_dim"}), _set(conv_dim=8, conv_alpha=256.0)),
)
