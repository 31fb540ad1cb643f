"""Draw the prompt suite with a base model and a LoRA."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from schema.errors import ConfigError, TrialError
from schema.prompts import PromptSuite

_BATCH = 16
_ADAPTER = "lora"
# transformers and peft patch torch.nn for all threads while they load: one at a time.
_LOADING = threading.Lock()


class Sampler:
    """A pipeline that is loaded once and draws with one LoRA after another.

    The same suite, checkpoint and device give the same pictures: each is drawn from noise of its own seed,
    made on the CPU, so that neither the batch nor the device changes it.
    """

    def __init__(self, base_model: str, device: str, threads: int) -> None:
        """Load the base model.

        Raises:
            ConfigError: it cannot be loaded.
        """
        torch.set_num_threads(threads)
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._device = torch.device(device)
        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        try:
            with _LOADING:
                self._pipe = _load(base_model, dtype).to(self._device)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"the base model {base_model} cannot be loaded: {reason}") from None
        # Deterministic and good in few steps; keeps what the model's own scheduler says of its noise.
        self._pipe.scheduler = DDIMScheduler.from_config(self._pipe.scheduler.config)
        self._pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(self, suite: PromptSuite, checkpoint: Path | None) -> Tensor:
        """Every prompt with every seed, prompt by prompt.

        Args:
            suite: prompts and how to draw them.
            checkpoint: LoRA file in kohya's or diffusers' format; None draws with the base model.

        Returns:
            (prompts * seeds, 3, H, W) float32 in [0, 1] on the device. A picture that is not finite, as a
            broken LoRA makes it, comes out black.

        Raises:
            TrialError: the file is no LoRA for this model.
        """
        if checkpoint is not None:
            self._attach(checkpoint)
        try:
            jobs = [(prompt.text, seed) for prompt in suite.prompts for seed in suite.seeds]
            drawn = [self._draw(suite, jobs[i : i + _BATCH]) for i in range(0, len(jobs), _BATCH)]
        finally:
            if checkpoint is not None:
                self._pipe.unload_lora_weights()
        return torch.cat(drawn)

    def _attach(self, checkpoint: Path) -> None:
        try:
            with _LOADING:
                self._pipe.load_lora_weights(str(checkpoint.parent), weight_name=checkpoint.name, adapter_name=_ADAPTER)
        except (OSError, ValueError, RuntimeError) as error:
            self._pipe.unload_lora_weights()
            reason = str(error).strip().splitlines()[0]
            raise TrialError(f"{checkpoint} cannot be loaded as a LoRA of the base model: {reason}") from None

    def _draw(self, suite: PromptSuite, jobs: list[tuple[str, int]]) -> Tensor:
        pictures: Tensor = self._pipe(
            [text for text, _ in jobs],
            negative_prompt=[suite.negative_prompt] * len(jobs),
            num_inference_steps=suite.steps,
            guidance_scale=suite.guidance_scale,
            guidance_rescale=suite.guidance_rescale,
            clip_skip=suite.clip_skip,
            width=suite.width,
            height=suite.height,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in jobs],
            output_type="pt",
        ).images
        return pictures.float().nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


def _load(base_model: str, dtype: torch.dtype) -> DiffusionPipeline:
    if base_model.endswith((".safetensors", ".ckpt")):
        return StableDiffusionPipeline.from_single_file(base_model, dtype=dtype)
    return DiffusionPipeline.from_pretrained(base_model, dtype=dtype, safety_checker=None)
