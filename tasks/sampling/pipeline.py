"""Draw a prompt suite with a base model and a LoRA."""

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

_SLICED_FROM = 256 * 256  # pixels: from here on, decoding a batch at once needs more memory than the UNet


class Sampler:
    """Draw with one LoRA after another on a pipeline that is loaded once: Stable Diffusion 1.x or XL.

    The same suite, checkpoint and device give the same pictures. Each is drawn from noise of its own seed, made on
    the CPU, so that neither batch nor device changes the noise. Threads that share a sampler draw one after another.
    """

    def __init__(self, base_model: str, device: str, threads: int) -> None:
        """Load the base model.

        Args:
            base_model: folder, hub id or .safetensors file.
            device: torch's name of the device; on a GPU the model runs in float16.
            threads: CPU threads.

        Raises:
            ConfigError: the model cannot be loaded.
            TrialError: the model does not fit into the device's free memory.
        """
        torch.set_num_threads(threads)
        _be_quiet()
        self._base_model, self._device = base_model, torch.device(device)
        on_gpu = self._device.type == "cuda"
        self._dtype = torch.float16 if on_gpu else torch.float32
        self._batches = BatchSizes(CudaMemory(self._device) if on_gpu else None)
        self._drawing = threading.Lock()
        self._pipe: DiffusionPipeline | None = None
        self._noise: Mapping[str, Any] = self._ready().scheduler.config  # noise schedule of the model's own scheduler

    @torch.no_grad()
    def draw(self, suite: PromptSuite, checkpoint: Path | None) -> Tensor:
        """Draw every prompt with every seed, prompt by prompt, in as few batches as memory allows.

        Args:
            suite: prompts and how to draw them.
            checkpoint: LoRA file in kohya's or diffusers' format; None draws with the base model.

        Returns:
            (prompts * seeds, 3, H, W) float32 in [0, 1] on the device. Values that are not finite, as a broken LoRA
            gives, become 0 (black).

        Raises:
            TrialError: the file is not a LoRA for this model, or the model and one picture do not fit into memory.
            ConfigError: the base model was released and can no longer be loaded.
        """
        with self._drawing:
            pipe = self._ready()
            try:
                with adapted(pipe, checkpoint):
                    return torch.cat(list(self._batches_of(pipe, suite)))
            finally:
                self._free_reserve()

    def release(self) -> None:
        """Release the device's memory, after a drawing in progress; the next drawing loads the model again.

        A model on a GPU is moved to the host's memory, from where it returns quickly. A model on the CPU is dropped
        and read from disk again.
        """
        with self._drawing:
            if self._device.type == "cpu":
                self._pipe = None
            elif self._pipe is not None:
                self._pipe.to("cpu")
            gc.collect()
            self._free_reserve()

    def _ready(self) -> DiffusionPipeline:
        """Return the pipeline, loaded and on its device."""
        if self._pipe is None:
            self._pipe = _load(self._base_model, self._dtype)
        try:
            return self._pipe.to(self._device)
        except torch.OutOfMemoryError:
            raise TrialError(
                f"the base model {self._base_model} does not fit into the free memory of {self._device}: "
                "end what else runs there, or draw while no training does"
            ) from None

    def _free_reserve(self) -> None:
        # Memory that torch keeps in reserve is not available to the trainer on the same GPU.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches_of(self, pipe: DiffusionPipeline, suite: PromptSuite) -> list[Tensor]:
        jobs = [(prompt.text, seed) for prompt in suite.prompts for seed in suite.seeds]
        pixels = _pixels(pipe, suite)
        pipe.vae.enable_slicing() if pixels >= _SLICED_FROM else pipe.vae.disable_slicing()
        drawn: list[Tensor] = []
        while jobs:
            count = self._batches.of(pixels, len(jobs))
            if (pictures := self._attempt(pipe, suite, jobs[:count], pixels)) is not None:
                drawn.append(pictures)
                jobs = jobs[count:]
        return drawn

    def _attempt(self, pipe: DiffusionPipeline, suite: PromptSuite, jobs: list[Job], pixels: int) -> Tensor | None:
        """Draw one batch; return None if it did not fit into memory, so that the next one is smaller."""
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
        # After the except block: until there, the error's traceback keeps the batch's memory alive.
        self._batches.halve(pixels, len(jobs))
        self._free_reserve()
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
    """Return the pixels of one picture: the suite's size, else the model's own."""
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
        pipe.watermark = None  # invisible to people, but the measures would pick it up
    return pipe


def _read(base_model: str, dtype: torch.dtype) -> DiffusionPipeline:
    if base_model.endswith(".safetensors"):
        kind = StableDiffusionXLPipeline if is_sdxl_checkpoint(Path(base_model)) else StableDiffusionPipeline
        return kind.from_single_file(base_model, dtype=dtype)
    return DiffusionPipeline.from_pretrained(base_model, dtype=dtype, safety_checker=None, use_safetensors=True)
