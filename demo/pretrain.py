"""Pre-train the demo's base model: a genuine, tiny Stable Diffusion in diffusers format.

    python -m demo.pretrain decoder --out demo/base --minutes 25 &
    python -m demo.pretrain unet    --out demo/base --minutes 80

The parts are the ordinary classes, only small: AutoencoderKL (demo/vae.py), CLIPTextModel with a byte-level
BPE tokenizer of its own, UNet2DConditionModel; v-prediction with zero terminal SNR. All pictures are drawn
(demo/drawn.py), nothing is downloaded. The two commands need nothing of each other, so they run side by
side, one CPU core each. Training is measured in minutes, not steps: the result is shipped, not remade
bit by bit. The parts are written every few minutes and can be looked at while they train.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.attributes import Attributes
from demo.drawn import STYLES, Colours, caption, draw_characters, random_blocks
from demo.vae import LATENT_CHANNELS, SIZE, new_vae

TEXT_WIDTH = 64  # features of a token; a small vocabulary needs no more. Chosen by hand
CONTEXT = 77  # tokens, as CLIP has it: kohya's chunks and ours count on it
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    "clip_sample": False,
}  # fmt: skip
_OTHER_WORDS = """pixel art, 8bit 16bit retro game, masterpiece, best quality, low quality, worst quality, blurry,
photo, photorealistic, smooth, shaded, gradient, simple background, front view, limited palette, solid colors,
sharp edges"""


CPU = torch.device("cpu")


class Clock:
    """Share of a time budget that is used up, and the learning rate that belongs to it."""

    def __init__(self, minutes: float) -> None:
        self.start, self.seconds = time.monotonic(), minutes * 60

    @property
    def used(self) -> float:
        """0 at the start, 1 when the budget is spent."""
        return (time.monotonic() - self.start) / self.seconds

    def rate(self, step: int, flat: float = 0.4) -> float:
        """Factor of the learning rate: 100 steps of warm-up, flat, then a cosine to 2 %."""
        late = max(0.0, (min(self.used, 1) - flat) / (1 - flat))
        return min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late)))


def pictures_to_analyse() -> Tensor:
    """The pictures that define the encoder: the same ones each time, (512, 3, 64, 64) in [-1, 1]."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(1234)
    pictures = torch.cat([*(draw_style(style, 96, seed=4321) for style in STYLES), random_blocks(128, CPU)])
    torch.set_rng_state(generator_state)
    return pictures * 2 - 1


def draw_style(style: str, count: int, seed: int) -> Tensor:
    """Random characters in one style, (count, 3, 64, 64) in [0, 1]."""
    rng = random.Random(seed)
    characters = [Attributes.draw(rng, crown_share=0.5) for _ in range(count)]
    return torch.cat([draw_characters(Colours.of(characters[i : i + 64], CPU), style) for i in range(0, count, 64)])


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (B, 77), padded and cut to the context length."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


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


def new_unet() -> UNet2DConditionModel:
    """Denoises 8 x 8 x 24 latents under a text of width 64."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 96),
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


def reconstruction_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """Squared, absolute and edge error: the last keeps a decoder from blurring."""
    difference = restored - pictures
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return 2 * difference.square().mean() + 0.5 * difference.abs().mean() + 0.5 * edges


class Latents:
    """Encoded pictures of all styles with several tokenised captions each."""

    def __init__(self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, captions: int, seed: int) -> None:
        rng = random.Random(seed)
        latents, tokens = [], []
        for style, share in STYLES.items():
            characters = [Attributes.draw(rng, crown_share=0.5) for _ in range(round(count * share))]
            for start in range(0, len(characters), 64):
                some = characters[start : start + 64]
                pictures = draw_characters(Colours.of(some, CPU), style) * 2 - 1
                latents.append(vae.encode(pictures).latent_dist.mean)
                written = [caption(c, style, rng) for c in some for _ in range(captions)]
                tokens.append(tokenise(tokenizer, written).view(len(some), captions, CONTEXT))
        self.mean, self.tokens = torch.cat(latents), torch.cat(tokens)
        self.std = vae.encode(pictures[:1]).latent_dist.std.mean()  # the encoder's is the same everywhere
        self.nothing = tokenise(tokenizer, [""])

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Latents (B, 24, 8, 8) and token ids (B, 77); a tenth without caption."""
        rows = torch.randint(0, len(self.mean), (size,))
        latents = self.mean[rows] + self.std * torch.randn(size, *self.mean.shape[1:])
        tokens = self.tokens[rows, torch.randint(0, self.tokens.shape[1], (size,))]
        return latents, torch.where(torch.rand(size, 1) < 0.1, self.nothing, tokens)


def train_decoder(out: Path, minutes: float, batch: int) -> None:
    """Teach the decoder to draw latents: crops for most of the time, whole pictures at the end."""
    vae = new_vae(pictures_to_analyse()).to(memory_format=torch.channels_last)
    learnt = nn.ModuleList([vae.decoder, vae.post_quant_conv])
    average = Average(vae)
    optimizer = torch.optim.AdamW(learnt.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    pool = torch.cat([draw_style(style, 600, seed=7) for style in STYLES] + [_many_blocks(1600)]) * 2 - 1
    with torch.no_grad():
        latents = torch.cat([vae.encode(pool[i : i + 64]).latent_dist.mean for i in range(0, len(pool), 64)])
    for step, clock in _steps("decoder", minutes, lambda: _save_part(average.module, out / "vae")):
        size, count = (SIZE, batch // 3) if clock.used > 0.7 else (SIZE // 2, batch)
        rows = torch.randint(0, len(pool), (count,))
        top, left = (int(torch.randint(0, (SIZE - size) // 8 + 1, ()).item()) for _ in range(2))
        seen = latents[rows, :, top : top + size // 8, left : left + size // 8]
        wanted = pool[rows, :, top * 8 : top * 8 + size, left * 8 : left * 8 + size]
        drawn = vae.decode(seen + 0.06 * torch.randn_like(seen)).sample
        loss = reconstruction_loss(drawn, wanted)
        _update(optimizer, 2e-3 * clock.rate(step), loss, learnt)
        average.update(step)
        _report(step, "decoder", loss, rmse=(drawn - wanted).square().mean().sqrt() / 2)


def train_unet(out: Path, minutes: float, batch: int) -> None:
    """Train UNet and text encoder together on the encoder's latents; plain v-prediction loss."""
    tokenizer = build_tokenizer(out / "tokenizer")
    vae = new_vae(pictures_to_analyse()).eval()
    with torch.no_grad():
        data = Latents(vae, tokenizer, count=20_000, captions=3, seed=11)
    unet, text = new_unet().to(memory_format=torch.channels_last), new_text_encoder(tokenizer).train()
    averages = Average(unet), Average(text)
    both = nn.ModuleList([unet, text])
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    noise_schedule = DDPMScheduler(**SCHEDULE)
    _save_frame(out, tokenizer)

    def save() -> None:
        _save_part(averages[0].module, out / "unet")
        _save_part(averages[1].module, out / "text_encoder")

    running = 1.0
    for step, clock in _steps("unet", minutes, save):
        latents, tokens = data.batch(batch)
        noise = torch.randn_like(latents)
        # Stratified timesteps: each batch sees all noise levels.
        timesteps = ((torch.randperm(batch) + torch.rand(batch)) / batch * 1000).long().clamp_(0, 999)
        predicted = unet(noise_schedule.add_noise(latents, noise, timesteps), timesteps, text(tokens)[0]).sample
        loss = F.mse_loss(predicted, noise_schedule.get_velocity(latents, noise, timesteps))
        _update(optimizer, 1e-3 * clock.rate(step), loss, both)
        for average in averages:
            average.update(step)
        running += 0.01 * (loss.item() - running)
        _report(step, "unet", torch.tensor(running))


def _many_blocks(count: int) -> Tensor:
    return torch.cat([random_blocks(32, CPU) for _ in range(count // 32)])


def _steps(name: str, minutes: float, save: Callable[[], None], every: float = 300) -> Iterator[tuple[int, Clock]]:
    """Count steps until the time is spent; save now and then, and at the end."""
    clock, step, saved = Clock(minutes), 0, time.monotonic()
    while clock.used < 1:
        yield step, clock
        step += 1
        if time.monotonic() - saved > every:
            save()
            saved = time.monotonic()
    save()
    print(f"{name}: {step} steps in {minutes:g} minutes", flush=True)


def _update(optimizer: torch.optim.Optimizer, rate: float, loss: Tensor, module: nn.Module) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def _report(step: int, name: str, loss: Tensor, **more: Tensor) -> None:
    if step % 200 == 0:
        print(name, step, f"loss {loss.item():.4f}", *(f"{k} {v.item():.4f}" for k, v in more.items()), flush=True)


def _save_part(model: nn.Module, folder: Path) -> None:
    """Save a part's weights in half precision."""
    half: Any = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(folder)


def _save_frame(out: Path, tokenizer: CLIPTokenizer) -> None:
    """Everything of the pipeline's folder that is not trained."""
    tokenizer.save_pretrained(out / "tokenizer")
    DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Command line of the pre-training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["decoder", "unet"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, in diffusers format")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, help="pictures a step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    if args.part == "decoder":
        train_decoder(args.out, args.minutes, args.batch or 18)
    else:
        train_unet(args.out, args.minutes, args.batch or 32)


if __name__ == "__main__":
    main()
