"""Pre-train the demo's base model: a genuine, tiny Stable Diffusion in diffusers format.

    python -m demo.pretrain --out demo/base --device cuda --minutes 9

The parts are the ordinary classes, only small: AutoencoderKL (8x smaller latents), CLIPTextModel with a
byte-level BPE tokenizer of its own, UNet2DConditionModel; v-prediction with zero terminal SNR. Every
picture is drawn fresh on the device (demo/drawn.py), so nothing is repeated and nothing is downloaded.
Training is measured in minutes, not steps: the result is shipped, not remade bit by bit. Nine minutes
were spent on one H200; on two CPU cores expect a day for the same number of samples.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.attributes import Attributes
from demo.drawn import SIZE, STYLES, Colours, caption, draw_characters, random_blocks

LATENT_CHANNELS = 24
TEXT_WIDTH = 64
CONTEXT = 77
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    "clip_sample": False,
}  # fmt: skip
_OTHER_WORDS = """pixel art, 8bit 16bit retro game, masterpiece, best quality, low quality, worst quality, blurry,
photo, photorealistic, smooth, shaded, gradient, simple background, front view, limited palette, solid colors,
sharp edges"""


class Clock:
    """Share of a time budget that is used up, and the learning rate that belongs to it."""

    def __init__(self, minutes: float) -> None:
        self.start, self.seconds = time.monotonic(), minutes * 60

    @property
    def used(self) -> float:
        """0 at the start, 1 when the budget is spent."""
        return (time.monotonic() - self.start) / self.seconds

    def rate(self, step: int, flat: float = 0.4) -> float:
        """Factor of the learning rate: 200 steps of warm-up, flat, then a cosine to 2 %."""
        late = max(0.0, (min(self.used, 1) - flat) / (1 - flat))
        return min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late)))


class Pool:
    """Characters with tokenised captions, ready on the device."""

    def __init__(self, tokenizer: CLIPTokenizer, count: int, seed: int, device: torch.device) -> None:
        rng = random.Random(seed)
        characters = [Attributes.draw(rng, crown_share=0.5) for _ in range(count)]
        self.colours = Colours.of(characters, device)
        self.tokens = {
            style: tokenise(tokenizer, [caption(c, style, rng) for c in characters], device) for style in STYLES
        }
        self.nothing = tokenise(tokenizer, [""], device)
        self.device, self.count = device, count

    def batches(self, size: int, ahead: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
        """Fresh pictures (B, 3, 64, 64) in [-1, 1] with token ids (B, 77); a tenth without caption.

        Several batches are drawn at once: on a GPU the many small shapes cost launches, not arithmetic.
        """
        while True:
            pictures, tokens = [], []
            for style, share in STYLES.items():
                rows = torch.randint(0, self.count, (round(size * ahead * share),), device=self.device)
                pictures.append(draw_characters(self.colours[rows], style))
                tokens.append(self.tokens[style][rows])
            images, ids = torch.cat(pictures) * 2 - 1, torch.cat(tokens)
            ids[torch.rand(len(ids), device=self.device) < 0.1] = self.nothing
            order = torch.randperm(len(ids), device=self.device)
            for rows in torch.split(order, size):
                yield images[rows], ids[rows]


def tokenise(tokenizer: CLIPTokenizer, captions: list[str], device: torch.device) -> Tensor:
    """Token ids (B, 77), padded and cut to the context length."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    ).input_ids
    return ids.to(device)


def build_tokenizer(folder: Path, vocabulary: int = 1000) -> CLIPTokenizer:
    """Train a byte-level BPE on captions, in CLIP's own format, so that any text can be encoded."""
    rng = random.Random(0)
    corpus = [caption(Attributes.draw(rng, crown_share=0.5), style, rng) for style in STYLES for _ in range(1000)]
    corpus += [_OTHER_WORDS] * 100
    reference = CLIPTokenizer()  # the class's own normaliser and pre-tokeniser
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = reference.backend_tokenizer.normalizer
    bpe.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2 - len(alphabet), initial_alphabet=alphabet, end_of_word_suffix="</w>",
        show_progress=False, min_frequency=2,
    )  # fmt: skip
    bpe.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    vocab = {word: index for index, word in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=CONTEXT)


def new_vae() -> AutoencoderKL:
    """64 x 64 x 3 <-> 8 x 8 x 24."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48, 96), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=LATENT_CHANNELS,
        norm_num_groups=4, sample_size=SIZE, mid_block_add_attention=False,
    )  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """Denoises 8 x 8 x 24 latents under a text of width 64."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 128),
        layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 64, trained together with the UNet."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = CLIPTextModel(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5)  # CLIP's initial 0.02 is slow to leave from scratch
    return model


class Average:
    """Exponential moving average of a module's weights: what is shipped."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.source = copy.deepcopy(module).eval().requires_grad_(False), module

    @torch.no_grad()
    def update(self, step: int, decay: float = 0.999) -> None:
        """Move towards the live weights, faster at the beginning."""
        weight = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(self.source.parameters()), weight)


def train_vae(pool: Pool, minutes: float, batch: int) -> AutoencoderKL:
    """Train encoder and decoder together on drawn pictures and random blocks."""
    vae = new_vae().to(pool.device)
    average = Average(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    drawn = pool.batches(batch - batch // 3)
    for step, clock in _steps("vae", minutes):
        blocks = random_blocks(batch // 3, pool.device) * 2 - 1
        pictures = torch.cat([next(drawn)[0], blocks])
        posterior = vae.encode(pictures).latent_dist
        restored = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(restored, pictures) + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        _update(optimizer, 2e-3 * clock.rate(step), loss, vae)
        average.update(step)
        _report(step, "vae", loss, rmse=(restored - pictures).square().mean().sqrt() / 2, std=posterior.std.mean())
    return average.module


def reconstruction_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """Squared, absolute and edge error: the last keeps a decoder from blurring."""
    difference = restored - pictures
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return 2 * difference.square().mean() + 0.5 * difference.abs().mean() + 0.5 * edges


def train_unet(
    pool: Pool, vae: AutoencoderKL, text: CLIPTextModel, minutes: float, batch: int
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train UNet and text encoder together on the VAE's latents; plain v-prediction loss."""
    unet, text = new_unet().to(pool.device), text.to(pool.device).train()
    averages = Average(unet), Average(text)
    both = nn.ModuleList([unet, text])
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    noise_schedule = DDPMScheduler(**SCHEDULE)
    drawn = pool.batches(batch)
    with torch.no_grad():
        latents = vae.encode(next(drawn)[0]).latent_dist.sample()
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    for step, clock in _steps("unet", minutes):
        pictures, tokens = next(drawn)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        # Stratified timesteps: each batch sees all noise levels.
        share = (torch.randperm(len(latents), device=pool.device) + torch.rand(len(latents), device=pool.device)) / len(
            latents
        )
        timesteps = (share * 1000).long().clamp_(0, 999)
        predicted = unet(noise_schedule.add_noise(latents, noise, timesteps), timesteps, text(tokens)[0]).sample
        loss = F.mse_loss(predicted, noise_schedule.get_velocity(latents, noise, timesteps))
        _update(optimizer, 1e-3 * clock.rate(step), loss, both)
        for average in averages:
            average.update(step)
        _report(step, "unet", loss)
    return averages[0].module, averages[1].module


def _steps(name: str, minutes: float) -> Iterator[tuple[int, Clock]]:
    clock, step = Clock(minutes), 0
    while clock.used < 1:
        yield step, clock
        step += 1
    print(f"{name}: {step} steps in {minutes:g} minutes", flush=True)


def _update(optimizer: torch.optim.Optimizer, rate: float, loss: Tensor, module: nn.Module) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def _report(step: int, name: str, loss: Tensor, **more: Tensor) -> None:
    if step % 500 == 0:
        print(name, step, f"loss {loss.item():.4f}", *(f"{k} {v.item():.4f}" for k, v in more.items()), flush=True)


def pipeline(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as an ordinary pipeline with a DDIM scheduler."""
    scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sample_sheet(pipe: StableDiffusionPipeline, device: torch.device) -> Image.Image:
    """Held-out characters in each style, one row a style, and one under a trigger the model does not know."""
    rng = random.Random(99)
    characters = [Attributes.draw(rng, crown_share=0.5) for _ in range(12)]
    rows = []
    for opening in ["pixel art, portrait of a character", *(f"{style} of a character" for style in STYLES)]:
        prompts = [", ".join([opening, *c.tags()]) for c in characters]
        seeds = [torch.Generator("cpu").manual_seed(i) for i in range(len(prompts))]
        pictures = pipe(
            prompts, num_inference_steps=20, guidance_scale=3.0, guidance_rescale=0.7, generator=seeds, output_type="pt"
        ).images
        rows.append(torch.cat(list(pictures), 2))
    sheet = (torch.cat(rows, 1).permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8")
    return Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST)


def main() -> None:
    """Command line of the pre-training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, in diffusers format")
    parser.add_argument("--device", default="cpu", help="cuda, cpu, mps")
    parser.add_argument("--minutes", type=float, default=9.0, help="for VAE and UNet together")
    parser.add_argument("--batch", type=int, default=384, help="pictures a step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)
    tokenizer = build_tokenizer(args.out / "tokenizer")
    pool = Pool(tokenizer, count=20_000, seed=args.seed, device=device)
    vae = train_vae(pool, args.minutes * 0.35, args.batch // 3)
    unet, text = train_unet(pool, vae, new_text_encoder(tokenizer), args.minutes * 0.65, args.batch)
    pipe = pipeline(vae, text, tokenizer, unet)
    pipe.set_progress_bar_config(disable=True)
    sample_sheet(pipe, device).save(args.out / "samples.png")
    pipe.to(torch.float16).save_pretrained(args.out)
    print(f"saved {args.out}", flush=True)


if __name__ == "__main__":
    main()
