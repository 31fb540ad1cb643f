"""Map layers of a UNet and of text encoders to kohya's names and block numbers.

SD 1.x keeps diffusers' names. SDXL's UNet uses those of the original code: down_blocks.b.resnets.j is
input_blocks.{3b+j+1}.0, and so on. Blocks are numbered from the input on, for ranks and learning rates per block.
"""

from __future__ import annotations

import math
import re

from diffusers import UNet2DConditionModel

from schema.errors import ConfigError, shown

# diffusers' paths inside a UNet; the last group is the path within the block.
_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
# Names of the original code for the layers of a residual block.
_IN_RESNET = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip


class Blocks:
    """Name and number the blocks of one UNet."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.sdxl = is_sdxl(unet)
        self._stages = len(unet.config.down_block_types)
        self._per_stage = int(unet.config.layers_per_block) + 1

    def __len__(self) -> int:
        """Return the length of a per-block list: 25 for SD 1.x, 23 for SDXL."""
        return sum(self.parts) + 2 * self.sdxl

    @property
    def parts(self) -> tuple[int, int, int]:
        """Return how many down, middle and up blocks have their own learning rate."""
        many = self._stages * self._per_stage
        return (many, 3, many) if self.sdxl else (many, 1, many)

    def number(self, name: str) -> int:
        """Return the number of the block that a layer lies in, from 0."""
        down, middle, _ = self.parts
        if place := _PLACE.match(name):
            way, stage, kind, index, _ = place.groups()
            within = self._per_stage - 1 if kind in ("downsamplers", "upsamplers") else int(index)
            start = 1 if way == "down" else down + 1 + self.sdxl * middle
            return start + self._per_stage * int(stage) + within + (self.sdxl and way == "down")
        if self.sdxl and (inner := _MIDDLE.match(name)):
            return down + 1 + (1 if inner.group(1) == "attentions" else 2 * int(inner.group(2)))
        return down

    def kohya_name(self, name: str) -> str:
        """Return a layer's name in a LoRA file, without prefix."""
        return (self._original(name) if self.sdxl else name).replace(".", "_")

    def _original(self, name: str) -> str:
        if inner := _MIDDLE.match(name):
            kind, index, rest = inner.groups()
            number = 1 if kind == "attentions" else 2 * int(index)
            return f"middle_block.{number}.{_inside(kind, rest)}"
        place = _PLACE.match(name)
        if place is None:
            return name
        way, stage, kind, index, rest = place.groups()
        first = self._per_stage * int(stage)
        if kind == "downsamplers":
            return f"input_blocks.{first + self._per_stage}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{first + self._per_stage - 1}.2.conv"
        side, number = (
            ("input_blocks", first + int(index) + 1) if way == "down" else ("output_blocks", first + int(index))
        )
        return f"{side}.{number}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def is_sdxl(unet: UNet2DConditionModel) -> bool:
    """Return whether a UNet is SDXL's, which is conditioned on sizes and pooled text."""
    return bool(unet.config.addition_embed_type == "text_time")


def text_name(name: str, prefix: str) -> str:
    """Return the name of a text encoder's layer in a LoRA file."""
    # Newer versions of transformers drop the level text_model, which all readers of LoRA files expect.
    full = name if name.startswith("text_model.") else f"text_model.{name}"
    return f"{prefix}_{full}".replace(".", "_")


def per_block(text: str, many: int, parameter: str) -> list[float]:
    """Parse a comma-separated list with one value per block, or kohya's name of a curve with an optional ``+base``.

    Args:
        text: the list or the curve.
        many: number of blocks.
        parameter: name of the parameter, for the message.

    Raises:
        ConfigError: a value is not a number, or there is not one value per block.
    """
    name, _, base = text.partition("+")
    curves = {
        "cosine": [math.sin(math.pi * i / max(many - 1, 1) / 2) for i in reversed(range(many))],
        "sine": [math.sin(math.pi * i / max(many - 1, 1) / 2) for i in range(many)],
        "linear": [i / max(many - 1, 1) for i in range(many)],
        "reverse_linear": [i / max(many - 1, 1) for i in reversed(range(many))],
        "zeros": [0.0] * many,
    }
    try:
        if name in curves:
            return [value + float(base or 0) for value in curves[name]]
        values = [float(value) for value in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{parameter} = {shown(text)} is no list of numbers: write {many} of them, comma-separated"
        ) from None
    if len(values) != many:
        raise ConfigError(f"{parameter} has {len(values)} values, but this model has {many} blocks: write {many}")
    return values


def _inside(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    head, _, tail = rest.partition(".")
    return _IN_RESNET.get(head, head) + (f".{tail}" if tail else "")
