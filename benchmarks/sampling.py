"""How fast a prompt suite is drawn with one LoRA after another, against what users do today.

    python -m benchmarks.sampling [--model DIR] [--device cuda] [--checkpoints 5] [--steps N] [--quick] [--json]

Today: for every checkpoint the pipeline is loaded anew, and each prompt is drawn by itself. Both draw the same
prompts with the same LoRAs (random ones), scheduler, steps, seeds and precision, in one process that has imported
everything and has loaded the model before. They take turns, so that a busy machine slows both, and medians of a
checkpoint are told. Ours loads once a campaign: that is told beside, not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from schema.prompts import PromptSuite, load_prompts
from tasks.sampling.pipeline import Sampler

_DEMO = Path(__file__).parent.parent / "demo"
_ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
_RANK = 16


@dataclass
class Candidate:
    """One way to draw a checkpoint's pictures, and the seconds its checkpoints took."""

    name: str
    draw: Callable[[Path], Tensor]
    seconds: list[float] = field(default_factory=list)

    def run(self, checkpoint: Path) -> Tensor:
        """One timed checkpoint: (B, 3, H, W) in [0, 1] on the host, so nothing is left to wait for."""
        start = time.perf_counter()
        pictures = self.draw(checkpoint).cpu()
        self.seconds.append(time.perf_counter() - start)
        return pictures


class Today:
    """The script that users write: load, attach the LoRA, draw prompt by prompt, forget."""

    def __init__(self, model: str, device: str, suite: PromptSuite) -> None:
        self._model, self._device, self._suite = model, device, suite
        self.loading: list[float] = []

    @torch.no_grad()
    def draw(self, checkpoint: Path) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        suite, start = self._suite, time.perf_counter()
        dtype = torch.float16 if self._device.startswith("cuda") else torch.float32
        pipe = DiffusionPipeline.from_pretrained(self._model, dtype=dtype, safety_checker=None).to(self._device)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(str(checkpoint))
        self.loading.append(time.perf_counter() - start)
        drawn = [
            pipe(
                prompt.text, negative_prompt=suite.negative_prompt, num_inference_steps=suite.steps,
                guidance_scale=suite.guidance_scale, guidance_rescale=suite.guidance_rescale,
                width=suite.width, height=suite.height, generator=torch.Generator("cpu").manual_seed(seed),
                output_type="pt",
            ).images.float()
            for prompt in suite.prompts for seed in suite.seeds
        ]  # fmt: skip
        return torch.cat(drawn)


def main() -> None:
    """Command line of the benchmark."""
    args = _arguments()
    suite = load_prompts(args.prompts)
    suite = suite.changed(sampler="ddim", clip_skip=None, steps=args.steps or suite.steps)
    start = time.perf_counter()
    sampler, today = Sampler(args.model, args.device, args.threads), Today(args.model, args.device, suite)
    first_load = time.perf_counter() - start
    candidates = [Candidate("ours", lambda file: sampler.draw(suite, file)), Candidate("today", today.draw)]
    with tempfile.TemporaryDirectory() as folder:
        loras = list(random_loras(args.model, 1 + (2 if args.quick else args.checkpoints), Path(folder)))
        for candidate in candidates:
            candidate.draw(loras[0])  # loads libraries and chooses kernels
        today.loading.clear()
        difference = max(_difference([c.run(file) for c in candidates]) for file in loras[1:])
    told = _told(candidates, today, len(suite.prompts) * len(suite.seeds))
    told |= {"our_first_load_s": first_load, "largest_difference": difference, "device": args.device}
    for name, value in told.items():
        print(f"{name:26s} {value:.4g}" if isinstance(value, float) else f"{name:26s} {value}")
    if args.json:
        print(json.dumps(told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(_DEMO / "base"), help="diffusers folder of an SD 1.x or SDXL model")
    parser.add_argument("--prompts", type=Path, default=_DEMO / "prompts.toml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--steps", type=int, help="instead of the prompt suite's")
    parser.add_argument("--quick", action="store_true", help="two checkpoints")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    return parser.parse_args()


def random_loras(model: str, count: int, folder: Path) -> Iterator[Path]:
    """LoRA files of the UNet's attention and MLP in kohya's format, each with weights of its own."""
    unet = DiffusionPipeline.from_pretrained(model, safety_checker=None).unet
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear) and n.endswith(_ADAPTED)}
    for number in range(count):
        generator, state = torch.Generator().manual_seed(number), {}
        for path, layer in layers.items():
            name = "lora_unet_" + path.replace(".", "_")
            state[f"{name}.lora_down.weight"] = torch.randn(_RANK, layer.in_features, generator=generator) * 0.02
            state[f"{name}.lora_up.weight"] = torch.randn(layer.out_features, _RANK, generator=generator) * 0.02
            state[f"{name}.alpha"] = torch.tensor(float(_RANK))
        save_file(state, folder / f"{number}.safetensors")
        yield folder / f"{number}.safetensors"


def _difference(drawn: list[Tensor]) -> float:
    """The largest difference of two candidates' pictures, of 1: they draw the same."""
    return float((drawn[0] - drawn[1]).abs().max())


def _told(candidates: list[Candidate], today: Today, pictures: int) -> dict[str, str | float]:
    ours, theirs = (median(candidate.seconds) for candidate in candidates)
    loading = median(today.loading)
    return {
        "sampling_ratio": theirs / ours,
        "images_per_second": pictures / ours,
        "images_per_second_today": pictures / theirs,
        "ratio_without_loading": (theirs - loading) / ours,
        "loading_today_s": loading,
        "pictures": pictures,
    }


if __name__ == "__main__":
    main()
