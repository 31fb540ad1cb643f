"""The demo's VAE: an ordinary AutoencoderKL whose encoder is computed, not trained.

Training both halves from nothing takes a GPU. An encoder that does a principal component analysis of
8 x 8 patches needs no training, its latents are final before the first step, and only the decoder is
left to learn. The analysis is written into the layers of the ordinary class:

- residual blocks pass their input on (their last convolution is zero);
- a stride-2 convolution looks at one 2 x 2 block of each input channel, so it can move space to depth
  and project in one go; three of them make the 8 x 8 patch;
- the last GroupNorm and SiLU are made harmless: each latent goes in as a pair (x, -x) beside constants so
  large that they alone set the norm's variance, and silu(x) - silu(-x) = x.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

SIZE = 64  # pixels, as `demo.drawn` draws
LATENT_CHANNELS = 24  # of patches of 8 x 8 pixels, which have 192 values; keeps art pixels sharp
WIDTHS = (12, 24, 48, 96)  # channels by level; three halvings give the factor 8 of Stable Diffusion
GROUPS = 4  # divides every width
POSTERIOR_STD = 0.05  # small beside latents of unit variance: encoding is nearly deterministic
_WHITENING = 0.25  # half way from raw components to unit variance: keeps detail visible to the loss
_CONSTANT = 30.0  # dwarfs what else a norm's group holds, so that the norm hardly changes it


def new_vae(pictures: Tensor) -> AutoencoderKL:
    """An autoencoder 64 x 64 x 3 <-> 8 x 8 x 24 with a finished encoder and an untrained decoder.

    Args:
        pictures: (N, 3, 64, 64) in [-1, 1], a few hundred, to analyse.
    """
    vae = AutoencoderKL(
        block_out_channels=WIDTHS, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS, sample_size=SIZE, mid_block_add_attention=False,
        scaling_factor=1.0,  # the latents of the analysed pictures have unit variance
    )  # fmt: skip
    with torch.no_grad():
        _write_encoder(vae, pictures)
        for block in _residual_blocks(vae.decoder):  # start near the identity: trains faster
            block.conv2.weight.mul_(0.1)
            block.conv2.bias.zero_()
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def _write_encoder(vae: AutoencoderKL, pictures: Tensor) -> None:
    halves = _space_to_depth(pictures)  # (N, 12, 32, 32)
    first = _components(_space_to_depth(halves), WIDTHS[1])  # (24, 48)
    quarters = torch.einsum("kc,nchw->nkhw", first, _space_to_depth(halves))
    second = _components(_space_to_depth(quarters), LATENT_CHANNELS, _WHITENING)  # (24, 96)
    latents = torch.einsum("kc,nchw->nkhw", second, _space_to_depth(quarters))
    second, offset = second / latents.std(), latents.mean((0, 2, 3)) / latents.std()

    encoder = vae.encoder
    for block in _residual_blocks(encoder):
        _zero(block.conv2)
    _zero(encoder.conv_in)
    _pass_on(encoder.conv_in, 3)
    downs = encoder.down_blocks
    _project(downs[0].downsamplers[0].conv, torch.eye(12), inputs=3)
    _zero(downs[1].resnets[0].conv_shortcut)
    _pass_on(downs[1].resnets[0].conv_shortcut, 12)
    _project(downs[1].downsamplers[0].conv, first, inputs=12)
    _zero(downs[2].resnets[0].conv_shortcut)
    _pass_on(downs[2].resnets[0].conv_shortcut, WIDTHS[1])
    _project(downs[2].downsamplers[0].conv, second, inputs=WIDTHS[1])
    downs[2].downsamplers[0].conv.bias[:LATENT_CHANNELS] = -offset
    _write_output(vae)


def _write_output(vae: AutoencoderKL) -> None:
    """Latents through the last norm and activation unharmed, with a constant posterior deviation."""
    encoder = vae.encoder
    shortcut, norm, out = encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out
    for layer in (shortcut, out, vae.quant_conv, norm):
        _zero(layer)
    size = WIDTHS[3] // GROUPS  # channels of one group
    latents = LATENT_CHANNELS // GROUPS
    constants = size - 2 * latents
    for group in range(GROUPS):
        for k in range(latents):
            latent, plus = group * latents + k, group * size + 2 * k
            shortcut.weight[plus, latent], shortcut.weight[plus + 1, latent] = 1, -1
            # The group's variance is that of its constants: undo the division by it.
            norm.weight[plus : plus + 2] = _CONSTANT * math.sqrt(constants / size)
            out.weight[latent, plus, 1, 1], out.weight[latent, plus + 1, 1, 1] = 1, -1
        for k in range(constants):
            shortcut.bias[group * size + 2 * latents + k] = _CONSTANT if k % 2 == 0 else -_CONSTANT
    _pass_on(vae.quant_conv, 2 * LATENT_CHANNELS)
    out.bias[LATENT_CHANNELS:] = 2 * math.log(POSTERIOR_STD)


def _space_to_depth(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 4C, H/2, W/2), channels ordered input channel, row, column."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def _components(x: Tensor, count: int, whitening: float = 0.0) -> Tensor:
    """The first principal components over all places, as rows (count, C), scaled by variance^-whitening."""
    samples = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()
    variances, vectors = torch.linalg.eigh(torch.cov(samples.T))
    top = vectors.flip(1)[:, :count].T
    scaled: Tensor = top * variances.flip(0)[:count, None] ** -whitening
    return scaled.float()


def _project(conv: nn.Conv2d, rows: Tensor, inputs: int) -> None:
    """A stride-2 convolution that projects each 2 x 2 block of the first `inputs` channels."""
    _zero(conv)
    conv.weight[: len(rows), :inputs, :2, :2] = rows.reshape(len(rows), inputs, 2, 2)


def _pass_on(conv: nn.Conv2d, channels: int) -> None:
    centre = conv.kernel_size[0] // 2
    conv.weight[range(channels), range(channels), centre, centre] = 1


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _residual_blocks(module: nn.Module) -> list[Any]:
    """Its residual blocks, of a class of diffusers that has no types."""
    return [m for m in module.modules() if type(m).__name__ == "ResnetBlock2D"]
