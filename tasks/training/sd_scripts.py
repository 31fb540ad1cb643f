"""The user's own checkout of kohya's sd-scripts as the trainer: our parameters in, our events out.

A thread reads what sd-scripts prints, looks at the files it writes, and tells both in events.jsonl. It checks what
sd-scripts does not: that goes on with a loss that is not a number, and ends with code 0 where it found no data.
As the thread holds the other end of its output, sd-scripts dies at its next word if this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import tomlkit
from safetensors import safe_open

from schema.errors import BadDataError, ConfigError
from schema.parameters import PARAMETERS, Parameters, with_defaults
from schema.runs import Outcome
from schema.taxonomy import Category
from tasks.pickles import refuse_pickle, refuse_pickled_model
from tasks.training import events as tell
from tasks.training.config import LYCORIS_ARGS, TrainingConfig
from tasks.training.dataset import class_tokens, find_pictures, find_samples, num_images
from tasks.training.launch import TrainerProcess

_SCRIPT, _SCRIPT_XL = "train_network.py", "sdxl_train_network.py"
_POLL, _GRACE, _TELL = 0.1, 5.0, 1.0
_STEP = re.compile(r"steps:\s+\d+%\|.*\|\s*(\d+)/\d+ \[.*?avr_loss=([-+.\w]+)[,\]]")
_VALIDATION = re.compile(r"epoch validation steps:.*val_epoch_avg_loss=([-+.\w]+)[,\]]")
_COUNT = re.compile(r"\s*(num epochs|total optimization steps)\b.*: (\d+)\s*$")
_SAVING = re.compile(r"saving checkpoint: .*?(?:-(\d{6}))?\.safetensors\s*$")
_NO_MEMORY = re.compile(r"out ?of ?memory|not enough memory|can't allocate memory|\bMemoryError\b", re.IGNORECASE)


class SdScriptsProcess(TrainerProcess):
    """sd-scripts, started on entering and never outliving the block; started again, it goes on after its last state."""

    def __init__(
        self, config: TrainingConfig, folder: Path, device: str, threads: int, checkout: Path, python: Path
    ) -> None:
        """Args: folder: the trial's; checkout: of sd-scripts; python: of the environment it runs in.

        Raises:
            ConfigError: no such checkout or python, or parameters that sd-scripts refuses.
        """
        self._train, self._dataset = folder.resolve() / "train.toml", folder.resolve() / "dataset.toml"
        super().__init__(self._train, folder, device, threads)
        settable = {n: v for n, v in config.parameters.items() if n not in PARAMETERS or not PARAMETERS[n].derived}
        here = {n: getattr(config, n) for n in ("output_dir", "train_data_dir", "reg_data_dir")}
        places = {name: path and path.resolve() for name, path in here.items()}  # sd-scripts runs in its checkout
        self._config = config.changed(parameters=with_defaults(settable), **places)
        check_sd_scripts(checkout, python)
        _refuse_unsupported(self._config, self._train)
        files = ["--config_file", str(self._train), "--dataset_config", str(self._dataset)]
        script = _SCRIPT_XL if _is_sdxl(config) else _SCRIPT
        self._checkout, self._command = checkout, [str(python.absolute()), script, *files]
        self._environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "400", **_only(device)}
        self._watcher: threading.Thread | None = None

    def _start(self) -> None:
        """Start sd-scripts, unless the data set is bad or all is done already; events say so."""
        _end_leftovers(self._train)
        done, resume = _last_state(self._config)
        reader = _Reader(self._config, self._events, self._log, done)
        if not reader.needless():
            write_tomls(self._config, self._train, self._dataset)
            self._process = subprocess.Popen(
                self._command + resume, cwd=self._checkout, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._watcher = threading.Thread(target=self._watch, args=(self._process, reader), daemon=True)
            self._watcher.start()

    def stop(self) -> None:
        """End sd-scripts with all its children; what was trained since its last saved state is lost."""
        process, self._told_to_stop = self._process, True
        if process is not None and process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            _signal_group(process.pid, signal.SIGKILL)
        if self._watcher is not None:
            self._watcher.join()

    def _alive(self) -> bool:
        return self._watcher is not None and self._watcher.is_alive()

    def _watch(self, process: subprocess.Popen[bytes], reader: _Reader) -> None:
        """Follow sd-scripts to its end, whatever that is, and leave none of its children behind."""
        try:
            with self._log.open("a", encoding="utf-8") as log:
                for line in _lines(process):
                    if line and not reader.line(line):
                        log.write(re.sub(r" {20,}", "  ", line.rstrip()) + "\n")  # padded to 400 columns
                        log.flush()
                    reader.look(process.pid)
                    if reader.failed:
                        break
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            code = process.wait()
            if process.stdout is not None:
                process.stdout.close()
        reader.end(code, self._told_to_stop)


class _Reader:
    """Makes events of printed lines and written files."""

    def __init__(self, config: TrainingConfig, events: Path, log: Path, done: int) -> None:
        """Args: done: epochs behind the state that training goes on from."""
        self._config, self._events, self._log, self._done = config, events, log, done
        self._last = config.integer("max_train_epochs")
        self._told = [event for event, _ in tell.read_events(events)]
        epochs = [event for event in self._told if isinstance(event, tell.EpochEvent)]
        totals = [event.total_steps for event in self._told if isinstance(event, tell.StartedEvent)]
        losses = [event.loss for event in self._told if isinstance(event, tell.StepEvent)]
        self._announced = {event.epoch for event in epochs}
        self._trained = max((event.time_trained for event in epochs if event.epoch <= done), default=0.0)
        self._counts = {"num epochs": self._last, "total optimization steps": totals[-1] if totals else 0}
        self._step, self._loss = done * self._per_epoch, losses[-1] if losses else 0.0
        self._peak, self._last_told = 0.0, -math.inf
        self._validation: float | None = None
        self._awaited: list[int] = []
        self.failed = self._no_data = self._no_memory = False
        self._began = self._epoch_began = time.monotonic()

    def needless(self) -> bool:
        """True where nothing need be started. Otherwise what an earlier attempt left untold is told or removed."""
        c = self._config
        try:
            find_samples(c.train_data_dir, c.text("caption_extension"), c.integer("num_repeats"))
        except BadDataError as error:
            return self._fail(Outcome.BAD_DATA, str(error))
        finished = [event for event in self._told if isinstance(event, tell.FinishedEvent)]
        if finished and is_complete(_lora(c, self._last)):
            tell.write_event(self._events, finished[-1].changed(at=time.time()))
            return True
        for epoch in sorted(set(range(1, self._last + 1)) - self._announced):
            if epoch <= self._done and is_complete(_lora(c, epoch)):
                self._announce(epoch)
            else:
                _lora(c, epoch).unlink(missing_ok=True)
        return self.failed

    def line(self, text: str) -> bool:
        """Take in one printed line; True where it only shows progress."""
        if match := _VALIDATION.search(text):
            self._validation = float(match[1])
            return True
        if match := _STEP.search(text):
            self._stepped(int(match[1]), float(match[2]))
            return True
        if match := _COUNT.match(text):
            self._counts[match[1]] = int(match[2])
            if match[1] == "total optimization steps":
                self._started()
        elif re.match(r"epoch \d+/\d+", text):
            self._epoch_began = time.monotonic()
        elif match := _SAVING.match(text):
            self._awaited.append(int(match[1] or self._last))
        self._no_data |= "No data found" in text
        self._no_memory |= bool(_NO_MEMORY.search(text))
        return False

    def look(self, pid: int | None = None) -> None:
        """Tell about the epochs whose files have come to be complete, with the main memory in use."""
        for epoch in [e for e in self._awaited if is_complete(_lora(self._config, e))]:
            self._awaited.remove(epoch)
            with contextlib.suppress(psutil.Error):
                self._peak = max(self._peak, psutil.Process(pid).memory_info().rss / 2**20 if pid else 0.0)
            if epoch not in self._announced and not self.failed:
                self._announce(epoch)

    def end(self, code: int, stopped: bool) -> None:
        """Judge how it ended: sd-scripts' exit code alone does not tell."""
        self.look()
        if self.failed:
            return
        if code == 0:
            self._check_result()
        elif stopped:
            tell.write_event(self._events, tell.StoppedEvent(step=self._step))
        elif code < 0:
            name = signal.Signals(-code).name
            hint = ", often for want of memory" if name == "SIGKILL" else ""
            self._fail(Outcome.CRASHED, f"sd-scripts died of {name}{hint}: see {self._log}")
        elif self._no_memory:
            mend = "lower train_batch_size or resolution, or set gradient_checkpointing"
            self._fail(Outcome.OUT_OF_MEMORY, f"sd-scripts ran out of memory after step {self._step}: {mend}")
        else:
            lines = self._log.read_text(encoding="utf-8").strip().splitlines() or ["it printed nothing"]
            self._fail(Outcome.CRASHED, f"sd-scripts ended with code {code}, see {self._log}: {lines[-1].strip()}")

    def _check_result(self) -> None:
        path, folder = _lora(self._config, self._last), self._config.train_data_dir
        if self._no_data:
            self._fail(Outcome.BAD_DATA, f"sd-scripts found no pictures in {folder}: put pictures with captions there")
        elif not is_complete(path):
            self._fail(Outcome.CRASHED, f"sd-scripts ended with code 0 but left no whole {path}: see {self._log}")
        elif (found := _examine(path))[2] != str(self._last):
            self._fail(Outcome.CRASHED, f"{path} is of epoch {found[2]}, not of {self._last}: see {self._log}")
        elif not found[1]:
            self._fail(Outcome.CRASHED, f"every lora_up in {path} is zero, nothing was learnt: raise learning_rate")
        else:
            ended = tell.FinishedEvent(step=self._step, time_trained=self._time(), peak_memory_mb=self._peak)
            tell.write_event(self._events, ended)

    def _started(self) -> None:
        total, per_epoch = self._counts["total optimization steps"], self._per_epoch
        self._step, images = self._done * per_epoch, num_images(self._config.train_data_dir)
        derived: Parameters = {"steps_per_epoch": per_epoch, "total_steps": total, "num_images": images}
        event = tell.StartedEvent(step=self._step, total_steps=total, derived=derived, trainable=0)
        tell.write_event(self._events, event)
        self._began = self._epoch_began = time.monotonic()

    def _stepped(self, step: int, loss: float) -> None:
        """A resumed sd-scripts counts from 0 again."""
        self._step, self._loss = self._done * self._per_epoch + step, loss
        if not math.isfinite(loss):
            mend = "lower learning_rate or network_alpha"
            self._fail(Outcome.DIVERGED, f"the loss is {loss} at step {self._step}: {mend}")
        elif time.monotonic() - self._last_told > _TELL:
            self._last_told, epoch = time.monotonic(), self._step / self._per_epoch
            event = tell.StepEvent(
                step=self._step, epoch=epoch, loss=loss, learning_rates=(), time_trained=self._time()
            )  # fmt: skip
            tell.write_event(self._events, event)

    def _announce(self, epoch: int) -> None:
        path = _lora(self._config, epoch)
        if not _examine(path)[0]:
            self._fail(Outcome.DIVERGED, f"the weights in {path} are not finite: lower learning_rate or network_alpha")
            return
        self._announced.add(epoch)
        event = tell.EpochEvent(
            step=epoch * self._per_epoch, epoch=epoch, loss=self._loss, validation_loss=self._validation,
            checkpoint=str(path), seconds=time.monotonic() - self._epoch_began, time_trained=self._time(),
            peak_memory_mb=self._peak,
        )  # fmt: skip
        tell.write_event(self._events, event)

    @property
    def _per_epoch(self) -> int:
        return max(1, self._counts["total optimization steps"] // max(1, self._counts["num epochs"]))

    def _time(self) -> float:
        return self._trained + time.monotonic() - self._began

    def _fail(self, outcome: Outcome, sentence: str) -> bool:
        self.failed = True
        tell.write_event(self._events, tell.FailedEvent(outcome=outcome, sentence=sentence))
        return True


def check_sd_scripts(checkout: Path, python: Path) -> None:
    """Raise ConfigError unless there are a checkout of sd-scripts and a python."""
    if not (checkout / _SCRIPT).is_file():
        raise ConfigError(f"{checkout} has no {_SCRIPT}: give the folder of your sd-scripts checkout")
    if not python.is_file() or not os.access(python, os.X_OK):
        raise ConfigError(f"{python} is no program: give the python of the environment sd-scripts runs in")


_NETWORK_ARGS = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
)  # fmt: skip
_LISTS = ("base_weights", "base_weights_multiplier")
_OTHERWISE = {
    *_NETWORK_ARGS, *LYCORIS_ARGS, *_LISTS, "weight_decay", "optimizer_args", "max_token_length", "num_repeats",
    "train_batch_size", "alpha_mask", "caption_version", "caption_complexity",
}  # fmt: skip
"""Parameters that do not stand in a file under their own name."""
_ADAFACTOR = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
"""Without these it chooses its learning rate itself."""


def write_tomls(config: TrainingConfig, train: Path, dataset: Path) -> None:
    """Write our parameters in kohya's two vocabularies."""
    p, cached = config.parameters, config.flag("cache_latents")
    plain = {name: value for name, value in p.items() if value is not None and name not in _OTHERWISE}
    of_data = {n: v for n, v in plain.items() if PARAMETERS[n].category in (Category.CAPTIONS, Category.DATA)}
    settings: dict[str, Any] = {n: v for n, v in plain.items() if n not in of_data} | {
        "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        "output_dir": str(config.output_dir), "output_name": config.output_name, "save_model_as": "safetensors",
        "network_args": _network_args(config),
        "optimizer_args": _optimizer_args(config),
        # To kohya a float is a share of all steps.
        **{n: p[n] if 0 < config.number(n) < 1 else config.integer(n) for n in ("lr_warmup_steps", "lr_decay_steps")},
        # Workers made anew each epoch do not know how often pictures were shuffled before: a resumed run sees the same.
        "max_data_loader_n_workers": 1 if cached else 2, "persistent_data_loader_workers": False,
        "save_state": True, "save_last_n_epochs_state": 1,
    }  # fmt: skip
    refuse_pickled_model(config.pretrained_model_name_or_path)
    for name in ("network_weights", "base_weights"):
        for part in config.texts(name):
            refuse_pickle(Path(part), f"{name}:")
    if p["network_weights"]:
        settings["network_weights"] = str(Path(config.text("network_weights")).absolute())
    if p["base_weights"]:
        settings["base_weights"] = [str(Path(part).absolute()) for part in config.texts("base_weights")]
    if p["base_weights_multiplier"]:
        settings["base_weights_multiplier"] = config.numbers("base_weights_multiplier")
    if config.integer("max_token_length") > 75:
        settings["max_token_length"] = p["max_token_length"]
    general = of_data | {"resolution": _resolution(config), "batch_size": p["train_batch_size"]}
    general.setdefault("validation_seed", p["seed"])
    document = {"general": general, "datasets": [{"subsets": _subsets(config)}]}
    train.parent.mkdir(parents=True, exist_ok=True)
    train.write_text(tomlkit.dumps(settings), encoding="utf-8")
    dataset.write_text(tomlkit.dumps(document), encoding="utf-8")


def _network_args(config: TrainingConfig) -> list[str]:
    p = config.parameters
    unused = set() if p["conv_dim"] or p["conv_block_dims"] else {"conv_alpha"}
    found = [f"{name}={p[name]}" for name in _NETWORK_ARGS if p[name] and name not in unused]
    if p["network_module"] == "lycoris.kohya":
        found += [f"{name}={p[name]}" for name in LYCORIS_ARGS]
        found += [] if p["conv_dim"] else ["preset=attn-mlp"]  # else it adapts 3x3 convolutions too
    return found


def _optimizer_args(config: TrainingConfig) -> list[str]:
    """Those of the user last: of two of one name kohya takes the second."""
    own = _ADAFACTOR if config.text("optimizer_type") == "Adafactor" else ()
    users = str(config.parameters["optimizer_args"] or "").split()
    return [f"weight_decay={config.number('weight_decay')}", *own, *users]


def _subsets(config: TrainingConfig) -> list[dict[str, Any]]:
    """One for each folder that holds pictures."""
    times, mask = config.integer("num_repeats"), config.flag("alpha_mask")
    sources = [(config.train_data_dir, False, times)]
    if config.reg_data_dir is not None:
        sources.append((config.reg_data_dir, True, 1))
    return [
        {
            "image_dir": str(folder), "num_repeats": repeats * more, "is_reg": is_reg, "alpha_mask": mask,
            **({"class_tokens": tokens} if folder != source and (tokens := class_tokens(folder)) else {}),
        }
        for source, is_reg, more in sources
        for folder, repeats in dict.fromkeys((path.parent, repeats) for path, repeats in find_pictures(source))
    ]  # fmt: skip


def _refuse_unsupported(config: TrainingConfig, path: Path) -> None:
    p, side, step = config.parameters, _resolution(config), 32 if _is_sdxl(config) else 64
    bucket = config.flag("enable_bucket")
    low, high = config.integer("min_bucket_reso"), config.integer("max_bucket_reso")
    for refused, sentence in (
        (p["max_token_length"] not in (75, 150, 225), "max_token_length must be 75, 150 or 225"),
        (p["progressive_rank"], "progressive_rank is what our own trainer has: remove it"),
        (p["max_train_steps"], "give max_train_epochs instead of max_train_steps: the epochs' files are waited for"),
        ((p["color_aug"] or p["random_crop"]) and p["cache_latents"],
         "color_aug and random_crop change pictures at each step: set cache_latents = false"),
        (p["full_fp16"] and p["mixed_precision"] != "fp16", 'full_fp16 needs mixed_precision = "fp16": set it'),
        (p["full_bf16"] and p["mixed_precision"] != "bf16", 'full_bf16 needs mixed_precision = "bf16": set it'),
        (p["lr_scheduler"] == "constant" and p["lr_warmup_steps"],
         "lr_scheduler constant has no warm-up: choose constant_with_warmup or lr_warmup_steps = 0"),
        (p["adaptive_noise_scale"] is not None and p["noise_offset"] is None,
         "adaptive_noise_scale needs noise_offset: set it"),
        (p["scale_v_pred_loss_like_noise_pred"] and not p["v_parameterization"],
         "scale_v_pred_loss_like_noise_pred needs v_parameterization = true: set it"),
        (bucket and config.integer("bucket_reso_steps") % step, f"bucket_reso_steps must be a multiple of {step}"),
        (bucket and not p["bucket_no_upscale"] and not low <= side <= high,
         f"resolution {side} must lie between min_bucket_reso {low} and max_bucket_reso {high}: change one of them"),
    ):  # fmt: skip
        if refused:
            raise ConfigError(f"{path}: {sentence} (sd-scripts)")


def _resolution(config: TrainingConfig) -> int:
    return config.integer("resolution") or (1024 if _is_sdxl(config) else 512)


def _is_sdxl(config: TrainingConfig) -> bool:
    base = Path(config.pretrained_model_name_or_path)
    if base.is_file():
        from tasks.training.models import is_sdxl_checkpoint  # torch: seconds that most commands can do without

        return is_sdxl_checkpoint(base)
    return (base / "text_encoder_2").is_dir() if base.is_dir() else "xl" in base.name.lower()


def is_complete(path: Path) -> bool:
    """True where a safetensors file has all the bytes that its header speaks of."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError):
        return False
    return bool(ends) and 8 + length + max(ends) == size


def _examine(path: Path) -> tuple[bool, bool, str]:
    """Whether all weights are finite, whether any lora_up is not zero, and the epoch that the file names."""
    finite, moved = True, False
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            finite &= bool(tensor.isfinite().all())
            moved |= ".lora_up." in name and bool(tensor.any())
        return finite, moved, str((file.metadata() or {}).get("ss_epoch"))


def _lora(config: TrainingConfig, epoch: int) -> Path:
    """As kohya names it: numbered, the last one without a number."""
    last = epoch == config.integer("max_train_epochs")
    return config.output_dir / f"{config.output_name}{'' if last else f'-{epoch:06d}'}.safetensors"


def _last_state(config: TrainingConfig) -> tuple[int, list[str]]:
    """The newest epoch that training can go on after, and the options for it; the random states are written last."""
    for epoch in range(config.integer("max_train_epochs") - 1, 0, -1):
        state = config.output_dir / f"{config.output_name}-{epoch:06d}-state"
        whole = is_complete(state / "model.safetensors") and zipfile.is_zipfile(state / "random_states_0.pkl")
        if whole and is_complete(_lora(config, epoch)):
            # Its own count of the epochs is wrong after a second resume.
            return epoch, ["--resume", str(state), "--initial_epoch", str(epoch + 1)]
    return 0, []


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """What the process prints, with None whenever it is silent, until it and its output have ended."""
    assert process.stdout is not None
    pipe, rest, poll = process.stdout.fileno(), b"", select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        ended = process.poll() is not None  # asked first: all that it printed by then is there to be read
        ready = bool(poll.poll(_POLL * 1000))
        data = os.read(pipe, 1 << 16) if ready else b""
        *lines, rest = re.split(rb"[\r\n]+", rest + data)
        if _STEP.search(rest.decode("utf-8", "replace")):  # the bar ends its line only when it moves on
            lines, rest = [*lines, rest], b""
        yield from (line.decode("utf-8", "replace") for line in lines)
        yield None
        if not data and (ready or ended):
            yield rest.decode("utf-8", "replace")
            return


def _only(device: str) -> dict[str, str]:
    """Environment that leaves sd-scripts this device alone."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": dict(enumerate(visible)).get(int(index)) or index} if index else {}


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _end_leftovers(train: Path) -> None:
    """End what an earlier attempt at the same trial left running: two would write the same files."""
    words = {"--config_file", str(train)}
    left = [p for p in psutil.process_iter(["cmdline"]) if words <= set(p.info["cmdline"] or ())]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, _GRACE)
