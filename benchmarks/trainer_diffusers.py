"""The peer of `benchmarks.trainer`: the loop of diffusers' published LoRA example, as its README sets it.

Rank 4 on the attention's four projections by peft, AdamW, a DataLoader, pictures encoded and captions read by the
text encoder at every step, the loss gathered every step for the progress bar, accelerate around it all. Written from
the example's documentation. Prints a JSON line for each step: its number and the time.

    python -m benchmarks.trainer_diffusers MODEL DATASET --resolution 128 --steps 8 --device cpu --precision no
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer


class Pictures(Dataset[dict[str, Tensor]]):
    """Pictures and token numbers, made anew whenever they are asked for."""

    def __init__(self, folder: Path, tokenizer: CLIPTokenizer, resolution: int) -> None:
        self._paths = sorted(folder.rglob("*.png"))
        self._tokenizer, self._resolution = tokenizer, resolution

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path = self._paths[index]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((self._resolution,) * 2, Image.Resampling.BILINEAR))
        ids = self._tokenizer(
            path.with_suffix(".txt").read_text(), max_length=77, padding="max_length", truncation=True,
            return_tensors="pt",
        ).input_ids[0]  # fmt: skip
        return {"pixels": torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1, "ids": ids}


def main() -> None:
    """Train for some steps."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    accelerator = Accelerator(mixed_precision=args.precision, cpu=args.device == "cpu")
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    device = accelerator.device
    scheduler = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(args.model, subfolder="tokenizer")
    text = CLIPTextModel.from_pretrained(args.model, subfolder="text_encoder").requires_grad_(False).to(device, dtype)
    vae = AutoencoderKL.from_pretrained(args.model, subfolder="vae").requires_grad_(False).to(device, dtype)
    unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet").requires_grad_(False).to(device, dtype)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    weights = [p for p in unet.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-2)
    pictures = Pictures(args.dataset, tokenizer, args.resolution)
    loader = DataLoader(pictures, shuffle=True, batch_size=args.batch, num_workers=0)
    schedule = get_scheduler("constant", optimizer, num_warmup_steps=0, num_training_steps=args.steps)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    unet.train()
    done = 0
    while done < args.steps:
        for batch in loader:
            with accelerator.accumulate(unet):
                latents = vae.encode(batch["pixels"].to(dtype=dtype)).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                levels = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
                noisy = scheduler.add_noise(latents, noise, levels)
                states = text(batch["ids"], return_dict=False)[0]
                predicted = unet(noisy, levels, states, return_dict=False)[0]
                loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
                accelerator.gather(loss.repeat(args.batch)).mean().item()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            done += 1
            print(json.dumps({"step": done, "at": time.time()}), flush=True)
            if done == args.steps:
                break


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="no", choices=("no", "fp16", "bf16"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
