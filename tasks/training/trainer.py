"""The training loop."""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from schema.errors import DivergedError
from schema.parameters import Parameters
from tasks.training.captions import CaptionRules
from tasks.training.checkpoint import (
    checkpoint_path,
    kohya_metadata,
    load_state,
    save_dtype,
    save_lora,
    save_state,
)
from tasks.training.config import TrainingConfig
from tasks.training.dataset import find_samples
from tasks.training.events import EpochEvent, Event, FinishedEvent, StartedEvent, StepEvent, StoppedEvent, write_event
from tasks.training.latents import LatentCache
from tasks.training.loss import Diffusion
from tasks.training.models import load_base_model
from tasks.training.network import LoRANetwork, adapt_text_encoder, adapt_unet
from tasks.training.optimizer import make_optimizer, make_schedule

_EXPLODED = 10.0
"""A mean loss this many times the first one counts as diverged."""


class Trainer:
    """One LoRA from start or from a saved state to its last epoch.

    On a CPU the same configuration gives the same weights, resumed or not. A GPU adds in changing order and
    comes out slightly different each time.
    """

    def __init__(self, config: TrainingConfig, folder: Path, device: torch.device) -> None:
        """Load everything; `folder` gets events.jsonl and the state.

        Raises:
            ConfigError: the model cannot be loaded, or an optimizer's package is missing.
            BadDataError: the data set cannot be trained on.
        """
        self.config, self.device = config, device
        self._events, self._state_file = folder / "events.jsonl", folder / "state" / "training.pt"
        self._stop, self._parent = False, os.getppid()
        seed = config.integer("seed")
        torch.manual_seed(seed)
        self._captions_rng, self._noise = random.Random(seed), torch.Generator().manual_seed(seed)

        extension, repeats = config.text("caption_extension"), config.integer("num_repeats")
        self._samples = find_samples(config.train_data_dir, extension, repeats)
        # The frozen weights may be half precision on a GPU; the LoRA itself stays in float32.
        self._autocast = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[config.text("mixed_precision")]
        model = load_base_model(config.pretrained_model_name_or_path, device, self._autocast or torch.float32)
        self._unet, self._text, self._tokenizer = model.unet, model.text_encoder, model.tokenizer
        self._unet.to(memory_format=torch.channels_last)
        self._latents = self._encode(LatentCache(model.vae, self._size(model.native_size), config.cache_dir, device))
        self._scale = float(model.vae.config.scaling_factor)
        gamma, offset = config.number("min_snr_gamma"), config.number("noise_offset")
        self._diffusion = Diffusion(model.scheduler, offset, gamma, device)
        self._rules = CaptionRules.of(config)
        self._networks = self._adapt()
        weights = [list(network.parameters()) for network in self._networks]
        self._weights = [p for group in weights for p in group]
        self._optimizer = make_optimizer(config, weights[0], weights[1] if len(weights) > 1 else [])
        self._schedule = make_schedule(config, self._optimizer, self.total_steps)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._autocast is torch.float16)
        self.epoch, self.step, self._position = 0, 0, 0
        self._order: list[int] = []
        self._losses: list[float] = []
        self._trained, self._first_loss = 0.0, math.nan

    @property
    def samples_per_epoch(self) -> int:
        """Pictures seen in an epoch, repeats counted."""
        return sum(sample.repeats for sample in self._samples)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        batches = math.ceil(self.samples_per_epoch / self.config.integer("train_batch_size"))
        return math.ceil(batches / self.config.integer("gradient_accumulation_steps"))

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the run."""
        return self.steps_per_epoch * self.config.integer("max_train_epochs")

    def run(self) -> None:
        """Train until done or told to stop (SIGTERM, or the parent is gone).

        Raises:
            DivergedError: the loss or the weights left the finite range.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._resume()
        trainable = sum(p.numel() for p in self._weights)
        self._tell(
            StartedEvent(step=self.step, total_steps=self.total_steps, derived=self._derived(), trainable=trainable)
        )
        self._train_mode()
        while self.epoch < self.config.integer("max_train_epochs"):
            started = time.monotonic()
            if not self._epoch():
                self._save_state()
                self._tell(StoppedEvent(step=self.step))
                return
            self._end_epoch(time.monotonic() - started)
        self._tell(FinishedEvent(step=self.step, time_trained=self._trained, peak_memory_mb=self._peak_memory()))

    def _epoch(self) -> bool:
        """Train the rest of the running epoch; False if told to stop."""
        if not self._position:
            self._order = [i for i, sample in enumerate(self._samples) for _ in range(sample.repeats)]
            self._captions_rng.shuffle(self._order)
            self._losses = []
        told, waiting = time.monotonic(), list[Tensor]()
        for batch, last in self._micro_batches():
            started = time.monotonic()
            waiting.append(self._micro_step(batch, last))
            self._trained += time.monotonic() - started
            if last and (time.monotonic() - told > 1 or self.step == 1):
                self._tell_step(waiting)
                told, waiting = time.monotonic(), []
                self._stop |= os.getppid() != self._parent
            if last and self._stop:
                self._losses += [loss.item() for loss in waiting]
                return False
        if waiting:
            self._tell_step(waiting)
        return True

    def _micro_batches(self) -> Iterator[tuple[list[int], bool]]:
        """Sample numbers of each micro-batch from the position on, and whether an optimizer step follows."""
        size, accumulate = self.config.integer("train_batch_size"), self.config.integer("gradient_accumulation_steps")
        while self._position < len(self._order):
            batch = self._order[self._position : self._position + size]
            self._position += len(batch)
            done = math.ceil(self._position / size)
            yield batch, done % accumulate == 0 or self._position == len(self._order)

    def _micro_step(self, batch: list[int], last: bool) -> Tensor:
        """Loss and gradients of one micro-batch, and the optimizer's step if it is the last one of its group."""
        captions = [self._rules.apply(self._samples[i].caption, self._captions_rng) for i in batch]
        noisy = self._diffusion.noise(self._batch_latents(batch), self._noise)
        with self._cast():
            text = self._encode_text(captions)
            predicted = self._unet(noisy.latents, noisy.timesteps, text).sample
        loss = self._diffusion.loss(predicted, noisy)
        self._scaler.scale(loss / self.config.integer("gradient_accumulation_steps")).backward()
        if last:
            if clip := self.config.number("max_grad_norm"):
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self._weights, clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._schedule.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.step += 1
        return loss.detach()

    def _batch_latents(self, batch: list[int]) -> Tensor:
        """Scaled samples of the posteriors, (B, C, h, w)."""
        mean, std = self._latents[0]
        if len(self._latents) > 1 and self._captions_rng.random() < 0.5:
            mean, std = self._latents[1]  # mirrored
        rows = torch.tensor(batch, device=self.device)
        noise = torch.randn(len(batch), *mean.shape[1:], generator=self._noise).to(self.device)
        return (mean[rows] + std[rows] * noise) * self._scale

    def _encode_text(self, captions: list[str]) -> Tensor:
        """Text states (B, tokens, width); clip_skip leaves out the last layers, then normalises."""
        length = self._tokenizer.model_max_length
        ids = self._tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        skip = self.config.integer("clip_skip")
        out = self._text(ids.input_ids.to(self.device), output_hidden_states=skip > 1)
        if skip > 1:
            inner = getattr(self._text, "text_model", self._text)
            states: Tensor = inner.final_layer_norm(out.hidden_states[-skip])
            return states
        last: Tensor = out[0]
        return last

    def _end_epoch(self, seconds: float) -> None:
        """Save checkpoint, event, state, in this order: killed in between, the epoch is only trained again."""
        self.epoch, self._position = self.epoch + 1, 0
        loss = sum(self._losses) / len(self._losses)
        if not all(torch.isfinite(p).all() for p in self._weights):
            raise DivergedError(f"the LoRA's weights are not finite after epoch {self.epoch}: lower learning_rate")
        every = self.config.integer("save_every_n_epochs")
        if self.epoch % every == 0 or self.epoch == self.config.integer("max_train_epochs"):
            path = checkpoint_path(self.config, self.epoch)
            metadata = kohya_metadata(self.config, self.epoch, self.step, self.steps_per_epoch, self.samples_per_epoch)
            save_lora(path, self._kohya_state(), metadata)
            self._tell(
                EpochEvent(
                    step=self.step, epoch=self.epoch, loss=loss, checkpoint=str(path), seconds=seconds,
                    time_trained=self._trained, peak_memory_mb=self._peak_memory(),
                )
            )  # fmt: skip
        self._save_state()

    def _kohya_state(self) -> dict[str, Tensor]:
        dtype = save_dtype(self.config)
        return {name: t for network in self._networks for name, t in network.kohya_state(dtype).items()}

    def _tell_step(self, losses: list[Tensor]) -> None:
        """Read the losses that are waiting on the device, judge them, and tell their mean.

        Raises:
            DivergedError: not finite, or many times the first.
        """
        values = torch.stack(losses).tolist()
        self._losses += values
        mean = sum(values) / len(values)
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} at step {self.step}: lower learning_rate or network_alpha")
        if math.isnan(self._first_loss):
            self._first_loss = mean
        if mean > _EXPLODED * max(self._first_loss, 0.1):
            raise DivergedError(
                f"the loss rose from {self._first_loss:.3g} to {mean:.3g} by step {self.step}: lower learning_rate"
            )
        epoch = self.epoch + self._position / len(self._order)
        rates = tuple(float(rate) for rate in self._schedule.get_last_lr())
        self._tell(StepEvent(step=self.step, epoch=epoch, loss=mean, learning_rates=rates, time_trained=self._trained))

    def _adapt(self) -> list[LoRANetwork]:
        """UNet first, then the text encoder unless it stays as it is."""
        c = self.config
        rank, alpha, dropout = c.integer("network_dim"), c.number("network_alpha"), c.number("network_dropout")
        networks = [adapt_unet(self._unet, rank, alpha, c.integer("conv_dim"), c.number("conv_alpha"), dropout)]
        if not c.flag("network_train_unet_only"):
            networks.append(adapt_text_encoder(self._text, rank, alpha, dropout))
        return [network.to(self.device) for network in networks]

    def _train_mode(self) -> None:
        for network in self._networks:
            network.train()
        if self.config.flag("gradient_checkpointing"):
            self._unet.enable_gradient_checkpointing()
            self._unet.train()  # diffusers checkpoints only while training; there is no dropout in it

    def _encode(self, cache: LatentCache) -> list[tuple[Tensor, Tensor]]:
        """Posteriors of all pictures on the device, and of their mirror images if flip_aug is on."""
        paths = [sample.path for sample in self._samples]
        flips = (False, True) if self.config.flag("flip_aug") else (False,)
        encoded = [cache.encode(paths, flip) for flip in flips]
        return [(mean.to(self.device), std.to(self.device)) for mean, std in encoded]

    def _size(self, native: int) -> tuple[int, int]:
        side = self.config.integer("resolution") or native
        return side, side

    def _cast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()

    def _derived(self) -> Parameters:
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "num_images": len(self._samples),
        }

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def _tell(self, event: Event) -> None:
        write_event(self._events, event)

    def _on_sigterm(self, *_: object) -> None:
        self._stop = True

    def _save_state(self) -> None:
        version, internal, gauss = self._captions_rng.getstate()
        state = {
            "networks": [network.state_dict() for network in self._networks],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "noise": self._noise.get_state(),
            "torch": torch.get_rng_state(),
            "python": [version, list(internal), gauss],
            "order": self._order, "losses": self._losses,
            "epoch": self.epoch, "step": self.step, "position": self._position,
            "trained": self._trained, "first_loss": self._first_loss,
        }  # fmt: skip
        save_state(self._state_file, state)

    def _resume(self) -> None:
        state = load_state(self._state_file)
        if state is None:
            return
        for network, saved in zip(self._networks, state["networks"], strict=True):
            network.load_state_dict(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self._noise.set_state(state["noise"])
        torch.set_rng_state(state["torch"])
        version, internal, gauss = state["python"]
        self._captions_rng.setstate((version, tuple(internal), gauss))
        self._order, self._losses = state["order"], state["losses"]
        self.epoch, self.step, self._position = state["epoch"], state["step"], state["position"]
        self._trained, self._first_loss = state["trained"], state["first_loss"]
