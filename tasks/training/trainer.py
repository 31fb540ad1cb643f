"""Run the training loop of one LoRA."""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schema.errors import ConfigError, DivergedError
from schema.parameters import Parameters
from tasks.training.captions import CaptionRules
from tasks.training.checkpoint import checkpoint_path, load_state, save_dtype, save_lora, save_state, step_path
from tasks.training.config import TrainingConfig
from tasks.training.data import Batch, TrainingData
from tasks.training.events import (
    EpochEvent,
    Event,
    FinishedEvent,
    StartedEvent,
    StepEvent,
    StoppedEvent,
    WarningEvent,
    write_event,
)
from tasks.training.growth import Growth
from tasks.training.loss import Diffusion, DiffusionRules, Noisy
from tasks.training.metadata import Progress, kohya_metadata
from tasks.training.models import BaseModel, load_base_model
from tasks.training.optimizer import make_optimizer, make_schedule
from tasks.training.plan import NetworkPlan
from tasks.training.precision import Scaler, trained_dtype
from tasks.training.text import TextConditioner

_DIVERGED_RATIO = 10.0
"""A mean loss this many times the first one (at least 0.1) counts as diverged. Chosen by hand."""

_VALIDATION_LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Noise levels of the validation loss as shares of all: 200, 400, 600 and 800 of 1000, as in sd-scripts."""


class Trainer:
    """Train one LoRA, from the start or from a saved state, to its last epoch.

    On a CPU the same configuration gives the same weights, resumed or not. A GPU adds in varying order, so its
    results differ slightly from run to run.
    """

    def __init__(
        self, config: TrainingConfig, folder: Path, device: torch.device, model: BaseModel | None = None
    ) -> None:
        """Load model and data, and build network and optimizer.

        Args:
            config: the configuration.
            folder: gets events.jsonl and the training state.
            device: where to train.
            model: the configuration's base model, if it is loaded already; it is adapted in place.

        Raises:
            ConfigError: the model cannot be loaded, or a parameter does not suit it.
            BadDataError: the data set cannot be trained on.
        """
        self.config, self.device = config, device
        self._events, self._state_file = folder / "events.jsonl", folder / "state" / "training.pt"
        self._stop, self._parent = False, os.getppid()
        seed = config.integer("seed")
        torch.manual_seed(seed)
        self._captions_rng, self._noise = random.Random(seed), torch.Generator().manual_seed(seed)
        frozen = self.frozen_dtype(config)
        self._autocast = None if frozen is torch.float32 else frozen
        name = config.pretrained_model_name_or_path
        self._model = load_base_model(name, device, frozen) if model is None else model.to(device)
        self._unet = self._model.unet
        self.data = TrainingData(config, self._model, device)
        self.config = config = self._with_epochs(config)
        self._diffusion = Diffusion(self._model.scheduler, DiffusionRules.of(config), device)
        self._rules = [CaptionRules.of(subset, self.total_steps) for subset in self.data.subset_configs]
        self._text = TextConditioner(
            self._model, config.integer("clip_skip"), config.integer("max_token_length"), device
        )
        few_captions = all(rules.few for rules in self._rules)
        plan = NetworkPlan(config, self._model)
        self._networks = [network.to(device, trained_dtype(config)) for network in plan.build()]
        if len(self._networks) == 1:
            self._text.freeze(config.cache_dir if few_captions else None)
        self._weights = [p for network in self._networks for p in network.parameters()]
        self._optimizer = make_optimizer(config, plan.groups(self._networks))
        self._schedule = make_schedule(config, self._optimizer, self.total_steps)
        self._growth, self._rank = Growth.of(config), config.integer("network_dim")
        self._scaler = Scaler(device.type, enabled=self._autocast is torch.float16)
        self.epoch, self.step, self._position = 0, 0, 0
        self._order: list[Batch] = []
        self._losses: list[float] = []
        self._trained, self._first_loss, self._halved = 0.0, math.nan, False
        self._started = time.time()

    @staticmethod
    def frozen_dtype(config: TrainingConfig) -> torch.dtype:
        """Return the number format of the frozen weights and of the arithmetic; for the LoRA see `trained_dtype`."""
        formats = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        return formats[config.text("mixed_precision")]

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps in an epoch."""
        return math.ceil(self.data.batches_per_epoch / self.config.integer("gradient_accumulation_steps"))

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps in the run."""
        whole = self.steps_per_epoch * self.config.integer("max_train_epochs")
        return min(whole, self.config.integer("max_train_steps") or whole)

    def _with_epochs(self, config: TrainingConfig) -> TrainingConfig:
        """Set max_train_epochs to the number of epochs that max_train_steps begin, if it is set."""
        if not config.integer("max_train_steps"):
            return config
        epochs = math.ceil(config.integer("max_train_steps") / self.steps_per_epoch)
        return config.changed(parameters={**config.parameters, "max_train_epochs": epochs})

    def run(self) -> None:
        """Train until done, or until stopped by SIGTERM or the end of the parent process.

        Raises:
            DivergedError: the loss rose too far, or loss or weights are not finite.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._resume()
        trainable = sum(p.numel() for p in self._weights)
        self._emit(
            StartedEvent(step=self.step, total_steps=self.total_steps, derived=self._derived(), trainable=trainable)
        )
        self._train_mode()
        while self.epoch < self.config.integer("max_train_epochs"):
            started = time.monotonic()
            if not self._epoch():
                self._save_state()
                self._emit(StoppedEvent(step=self.step))
                return
            self._end_epoch(time.monotonic() - started)
        self._emit(FinishedEvent(step=self.step, time_trained=self._trained, peak_memory_mb=self._peak_memory()))

    def _epoch(self) -> bool:
        """Train the rest of the running epoch; return False if stopped."""
        if not self._position:
            self._order, self._losses = self.data.batches(self._captions_rng), []
            self._grow(self._growth.rank(self.epoch + 1))
        reported_at, waiting = time.monotonic(), list[Tensor]()
        accumulate = self.config.integer("gradient_accumulation_steps")
        while self._position < len(self._order) and self.step < self.total_steps:
            group = self._order[self._position : self._position + accumulate]
            started = time.monotonic()
            waiting += self._train(group)
            self._position += len(group)
            self._trained += time.monotonic() - started
            self._save_step()
            # Losses stay on the device until they are reported: reading one waits for the GPU.
            if time.monotonic() - reported_at > 1 or self.step == 1:
                self._report_step(waiting)
                reported_at, waiting = time.monotonic(), []
                self._stop |= os.getppid() != self._parent  # an orphan gets another parent
            if self._stop:
                self._losses += [loss.item() for loss in waiting]
                return False
        if waiting:
            self._report_step(waiting)
        return True

    def _grow(self, rank: int) -> None:
        if rank > self._rank:
            self._growth.grow(self._networks, self._optimizer, rank)
            self._rank = rank

    def _train(self, group: list[Batch]) -> list[Tensor]:
        """Make one optimizer step on a group of batches and return their losses, still on the device.

        After the first out of memory, batches are trained in halves from then on, which gives the same gradients.
        """
        try:
            losses = self._accumulate(group)
        except torch.OutOfMemoryError:
            if self._halved or max(map(len, group)) < 2:
                raise
            self._halved = True
            self._optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            size = self.config.integer("train_batch_size")
            self._emit(WarningEvent(sentence=f"out of memory: batches of {size} are trained in halves from now on"))
            losses = self._accumulate(group)
        if clip := self.config.number("max_grad_norm"):
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._weights, clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return losses

    def _accumulate(self, group: list[Batch]) -> list[Tensor]:
        """Add up the gradients of batches and return their losses."""
        losses = []
        for batch in group:
            parts = [batch[: (len(batch) + 1) // 2], batch[(len(batch) + 1) // 2 :]] if self._halved else [batch]
            shares = [(part, len(part) / len(batch)) for part in parts if part]
            losses.append(torch.stack([self._backward(part, share) for part, share in shares]).sum())
        return losses

    def _backward(self, batch: Batch, share: float) -> Tensor:
        """Add the gradients of a batch, or of a `share` (0-1) of one, and return its loss."""
        noisy = self._diffusion.noise(self.data.latents(batch, self._captions_rng, self._noise), self._noise)
        captions = [
            self._rules[self.data.subset(i)].apply(self.data.caption(i), self._captions_rng, self.step, self.epoch + 1)
            for i in batch
        ]
        predicted = self._predict(noisy, captions, batch)
        loss = share * self._diffusion.loss(predicted, noisy, self.data.weights(batch), self.data.masks(batch))
        self._scaler.scale(loss / self.config.integer("gradient_accumulation_steps")).backward()
        if limit := self.config.number("scale_weight_norms"):
            for network in self._networks:
                network.limit_norms(limit)
        return loss.detach()

    def _predict(self, noisy: Noisy, captions: list[str], batch: Batch) -> Tensor:
        with self._cast():
            text = self._text.encode(captions)
            added = (
                {"text_embeds": text.pooled, "time_ids": self.data.time_ids(batch)} if text.pooled is not None else None
            )
            predicted: Tensor = self._unet(noisy.latents, noisy.timesteps, text.states, added_cond_kwargs=added).sample
        return predicted

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Return the mean squared error on the validation pictures; fixed noise makes epochs comparable."""
        batches = self.data.validation_batches()
        if not batches:
            return None
        self._networks_train(False)
        levels = int(self._model.scheduler.config.num_train_timesteps)
        errors = []
        for batch in batches:
            latents = self.data.means(batch)
            captions = [self._rules[self.data.subset(i)].plain(self.data.caption(i)) for i in batch]
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(batch[0])).to(self.device)
            for share in _VALIDATION_LEVELS:
                noisy = self._diffusion.noised(latents, noise, torch.tensor([int(share * levels)], device=self.device))
                predicted = self._predict(noisy, captions, batch)
                errors.append(F.mse_loss(predicted.float(), noisy.target.float()))
        self._networks_train(True)
        return float(torch.stack(errors).mean())

    def _end_epoch(self, seconds: float) -> None:
        """Save checkpoint, event and state in this order: if killed in between, only this epoch is trained again."""
        self.epoch, self._position = self.epoch + 1, 0
        loss = sum(self._losses) / len(self._losses)
        self._optimizer_mode(training=False)
        if not all(torch.isfinite(p).all() for p in self._weights):
            raise DivergedError(f"the LoRA's weights are not finite after epoch {self.epoch}: lower learning_rate")
        every = self.config.integer("save_every_n_epochs")
        if self.epoch % every == 0 or self.epoch == self.config.integer("max_train_epochs"):
            path = checkpoint_path(self.config, self.epoch)
            self._save_lora(path)
            self._emit(
                EpochEvent(
                    step=self.step, epoch=self.epoch, loss=loss, validation_loss=self._validate(),
                    checkpoint=str(path), seconds=seconds, time_trained=self._trained,
                    peak_memory_mb=self._peak_memory(),
                )
            )  # fmt: skip
        self._optimizer_mode(training=True)
        self._save_state()

    def _save_step(self) -> None:
        """Save a LoRA for kohya's save_every_n_steps, beside those of the epochs and without an event."""
        every = self.config.integer("save_every_n_steps")
        if every and self.step % every == 0:
            self._optimizer_mode(training=False)
            self._save_lora(step_path(self.config, self.step))
            self._optimizer_mode(training=True)

    def _save_lora(self, path: Path) -> None:
        metadata = kohya_metadata(self.config, self._progress(), self.data, self._model)
        save_lora(path, self._kohya_state(), metadata)

    def _kohya_state(self) -> dict[str, Tensor]:
        dtype = save_dtype(self.config)
        return {name: t for network in self._networks for name, t in network.kohya_state(dtype).items()}

    def _report_step(self, losses: list[Tensor]) -> None:
        """Fetch the waiting losses from the device, check them, and report their mean.

        Raises:
            DivergedError: the mean is not finite, or many times the first one.
        """
        values = torch.stack(losses).tolist()
        self._losses += values
        mean = sum(values) / len(values)
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} at step {self.step}: lower learning_rate or network_alpha")
        if math.isnan(self._first_loss):
            self._first_loss = mean
        if mean > _DIVERGED_RATIO * max(self._first_loss, 0.1):
            raise DivergedError(
                f"the loss rose from {self._first_loss:.3g} to {mean:.3g} by step {self.step}: lower learning_rate"
            )
        epoch = self.epoch + self._position / len(self._order)
        rates = tuple(float(rate) for rate in self._schedule.get_last_lr())
        self._emit(StepEvent(step=self.step, epoch=epoch, loss=mean, learning_rates=rates, time_trained=self._trained))

    def _train_mode(self) -> None:
        self._networks_train(True)
        self._optimizer_mode(training=True)
        if self.config.flag("gradient_checkpointing"):
            self._unet.enable_gradient_checkpointing()
            self._unet.train()  # diffusers checkpoints only in training mode; it has no dropout to switch on
            for encoder in self._model.text_encoders[: len(self._networks) - 1]:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
                encoder.train()
        if self.config.flag("xformers"):
            self._unet.enable_xformers_memory_efficient_attention()
        if self.config.flag("torch_compile"):
            # By block: blocks of a kind share their kernels, and later trials reuse them from the cache on disk.
            self._unet.compile_repeated_blocks(dynamic=False)

    def _networks_train(self, training: bool) -> None:
        for network in self._networks:
            network.train(training)

    def _optimizer_mode(self, training: bool) -> None:
        """Switch schedule-free optimizers, whose weights while training differ from those to save."""
        switch = getattr(self._optimizer, "train" if training else "eval", None)
        if switch is not None:
            switch()

    def _progress(self) -> Progress:
        kind = type(self._optimizer)
        optimizer = f"{kind.__module__}.{kind.__qualname__}"
        return Progress(self.epoch, self.step, self.steps_per_epoch, self._started, self._rank, optimizer)

    def _cast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()

    def _derived(self) -> Parameters:
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "num_images": len(self.data.samples),
        }

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux

    def _emit(self, event: Event) -> None:
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
            "trained": self._trained, "first_loss": self._first_loss, "halved": self._halved,
            "started": self._started, "rank": self._rank, "parameters": self.config.parameters,
        }  # fmt: skip
        save_state(self._state_file, state)

    def _resume(self) -> None:
        state, trouble = load_state(self._state_file)
        if trouble is not None:
            self._emit(WarningEvent(sentence=trouble))
        if state is None:
            return
        if changed := [n for n, v in self.config.parameters.items() if state["parameters"].get(n) != v]:
            raise ConfigError(
                f"{self._state_file} was saved under another {changed[0]}: set it back to go on, "
                "or remove the file to train anew"
            )
        self._grow(state["rank"])  # first, so that the saved tensors fit
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
        self._trained, self._first_loss, self._halved = state["trained"], state["first_loss"], state["halved"]
        self._started = state["started"]
