"""Draw the prompt suite with a base model and a LoRA."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from schema.errors import ConfigError, TrialError
from schema.prompts import PromptSuite
from tasks.pickles import refuse_pickled_model
from tasks.sampling.lora import LOADING, adapted
from tasks.sampling.memory import BatchSizes, CudaMemory
from tasks.sampling.schedulers import scheduler_of
from tasks.training.models import is_sdxl_checkpoint

Job: TypeAlias = tuple[str, int]
"""Prompt and seed of one picture."""

_LARGE = 256 * 256  # pixels: from here on a batch decoded at once needs more memory than the UNet


class Sampler:
    """A pipeline that is loaded once and draws with one LoRA after another: Stable Diffusion 1.x or XL.

    The same suite, checkpoint and device give the same pictures: each is drawn from noise of its own seed,
    made on the CPU, so that neither the batch nor the device changes it. Threads that share a sampler draw one
    after another.
    """

    def __init__(self, base_model: str, device: str, threads: int) -> None:
        """Load the base model.

        Raises:
            ConfigError: it cannot be loaded.
            TrialError: the device lacks the memory for it.
        """
        torch.set_num_threads(threads)
        _be_quiet()
        self._base_model, self._device = base_model, torch.device(device)
        on_gpu = self._device.type == "cuda"
        self._dtype = torch.float16 if on_gpu else torch.float32
        self._batches = BatchSizes(CudaMemory(self._device) if on_gpu else None)
        self._drawing = threading.Lock()
        self._pipe: DiffusionPipeline | None = None
        self._noise: Mapping[str, Any] = self._ready().scheduler.config  # what the model's own scheduler says of it

    @torch.no_grad()
    def draw(self, suite: PromptSuite, checkpoint: Path | None) -> Tensor:
        """Every prompt with every seed, prompt by prompt, in as few batches as memory allows.

        Args:
            suite: prompts and how to draw them.
            checkpoint: LoRA file in kohya's or diffusers' format; None draws with the base model.

        Returns:
            (prompts * seeds, 3, H, W) float32 in [0, 1] on the device. A picture that is not finite, as a
            broken LoRA makes it, comes out black.

        Raises:
            TrialError: the file is no LoRA for this model, or the device lacks the memory for the model and one
                picture.
            ConfigError: the base model was released and can no longer be loaded.
        """
        with self._drawing:
            pipe = self._ready()
            try:
                with adapted(pipe, checkpoint):
                    return torch.cat(list(self._batches_of(pipe, suite)))
            finally:
                self._give_back()

    def release(self) -> None:
        """Give the memory of the device back, after a drawing that is going on; the next drawing takes it again.

        From a GPU the model goes to the host's memory, from where it is back in a moment; a CPU forgets it, and
        the next drawing reads it anew.
        """
        with self._drawing:
            if self._device.type == "cpu":
                self._pipe = None
            elif self._pipe is not None:
                self._pipe.to("cpu")
            gc.collect()
            self._give_back()

    def _ready(self) -> DiffusionPipeline:
        """The pipeline, loaded and on its device."""
        if self._pipe is None:
            self._pipe = _load(self._base_model, self._dtype)
        try:
            return self._pipe.to(self._device)
        except torch.OutOfMemoryError:
            raise TrialError(
                f"the base model {self._base_model} does not fit into the free memory of {self._device}: "
                "end what else runs there, or draw while no training does"
            ) from None

    def _give_back(self) -> None:
        """What torch keeps in reserve on a GPU is room that the trainer beside lacks."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches_of(self, pipe: DiffusionPipeline, suite: PromptSuite) -> list[Tensor]:
        jobs = [(prompt.text, seed) for prompt in suite.prompts for seed in suite.seeds]
        pixels = _pixels(pipe, suite)
        pipe.vae.enable_slicing() if pixels >= _LARGE else pipe.vae.disable_slicing()
        drawn: list[Tensor] = []
        while jobs:
            count = self._batches.of(pixels, len(jobs))
            if (pictures := self._attempt(pipe, suite, jobs[:count], pixels)) is not None:
                drawn.append(pictures)
                jobs = jobs[count:]
        return drawn

    def _attempt(self, pipe: DiffusionPipeline, suite: PromptSuite, jobs: list[Job], pixels: int) -> Tensor | None:
        """One batch, or None if it did not fit into memory: the next one will be smaller."""
        try:
            with self._batches.watch(pixels, len(jobs)):
                pipe.scheduler = scheduler_of(suite.sampler, self._noise)
                return _draw(pipe, suite, jobs)
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise TrialError(
                    f"not even one picture fits into the free memory of {self._device}: "
                    "draw smaller ones (width and height of the prompt suite), or while no training runs beside"
                ) from None
        # Not before here: the error still held what the batch had taken.
        self._batches.halve(pixels, len(jobs))
        self._give_back()
        return None


def _draw(pipe: DiffusionPipeline, suite: PromptSuite, jobs: list[Job]) -> Tensor:
    pictures: Tensor = pipe(
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


def _pixels(pipe: DiffusionPipeline, suite: PromptSuite) -> int:
    """Of one picture."""
    own = int(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    return (suite.width or own) * (suite.height or own)


def _be_quiet() -> None:
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _load(base_model: str, dtype: torch.dtype) -> DiffusionPipeline:
    refuse_pickled_model(base_model)
    try:
        with LOADING:
            pipe = _read(base_model, dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the base model {base_model} cannot be loaded: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe, StableDiffusionXLPipeline):
        pipe.watermark = None  # made to be unseen by people; the measures would see it
    return pipe


def _read(base_model: str, dtype: torch.dtype) -> DiffusionPipeline:
    if base_model.endswith(".safetensors"):
        kind = StableDiffusionXLPipeline if is_sdxl_checkpoint(Path(base_model)) else StableDiffusionPipeline
        return kind.from_single_file(base_model, dtype=dtype)
    return DiffusionPipeline.from_pretrained(base_model, dtype=dtype, safety_checker=None, use_safetensors=True)
