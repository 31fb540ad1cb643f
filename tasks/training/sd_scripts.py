"""Train with the user's own checkout of kohya's sd-scripts: our parameters in, our events out.

A thread reads the output of sd-scripts, watches the files it writes, and reports both in events.jsonl. It checks what
sd-scripts does not: sd-scripts goes on with a loss of NaN, and exits with 0 if it found no data. The thread holds the
other end of the output pipe, so if this process is killed, sd-scripts dies at its next line of output.
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

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
from safetensors import safe_open

from schema.errors import BadDataError, ConfigError
from schema.parameters import PARAMETERS, Parameters, with_defaults
from schema.runs import Outcome
from tasks.training.config import TrainingConfig
from tasks.training.dataset import find_samples, num_images
from tasks.training.events import (
    EpochEvent,
    FailedEvent,
    FinishedEvent,
    StartedEvent,
    StepEvent,
    StoppedEvent,
    read_events,
    write_event,
)
from tasks.training.launch import TrainerProcess
from tasks.training.sd_scripts_config import is_sdxl, refuse_unsupported, write_tomls

_SCRIPT, _SCRIPT_XL = "train_network.py", "sdxl_train_network.py"
_POLL_SECONDS = 0.1  # short enough that `stop` and the end of sd-scripts are noticed at once
_KILL_GRACE = 5.0  # seconds after SIGTERM; sd-scripts saves nothing then, so there is no reason to wait long
_REPORT_SECONDS = 1.0  # at most one step event a second, as our own trainer writes them
# Lines that sd-scripts prints: tqdm's bars, counts before training, and names of files about to be written.
_STEP = re.compile(r"steps:\s+\d+%\|.*\|\s*(\d+)/\d+ \[.*?avr_loss=([-+.\w]+)[,\]]")
_VALIDATION = re.compile(r"epoch validation steps:.*val_epoch_avg_loss=([-+.\w]+)[,\]]")
_COUNT = re.compile(r"\s*(num epochs|total optimization steps)\b.*: (\d+)\s*$")
_SAVING = re.compile(r"saving checkpoint: .*?(?:-(\d{6}))?\.safetensors\s*$")
_NO_MEMORY = re.compile(r"out ?of ?memory|not enough memory|can't allocate memory|\bMemoryError\b", re.IGNORECASE)


class SdScriptsProcess(TrainerProcess):
    """Run sd-scripts as a context manager; a restart goes on from its last saved state."""

    def __init__(
        self, config: TrainingConfig, folder: Path, device: str, threads: int, checkout: Path, python: Path
    ) -> None:
        """Check the checkout and the parameters without starting.

        Args:
            config: our configuration.
            folder: the trial's folder, which gets the files for sd-scripts, events.jsonl and trainer.log.
            device: torch's name of the device.
            threads: CPU threads.
            checkout: folder of sd-scripts.
            python: interpreter of the environment that sd-scripts runs in.

        Raises:
            ConfigError: there is no such checkout or interpreter, or sd-scripts does not support a parameter.
        """
        self._train, self._dataset = folder.resolve() / "train.toml", folder.resolve() / "dataset.toml"
        super().__init__(self._train, folder, device, threads)
        settable = {n: v for n, v in config.parameters.items() if n not in PARAMETERS or not PARAMETERS[n].derived}
        here = {n: getattr(config, n) for n in ("output_dir", "train_data_dir", "reg_data_dir")}
        places = {name: path and path.resolve() for name, path in here.items()}  # sd-scripts runs in its checkout
        self._config = config.changed(parameters=with_defaults(settable), **places)
        check_sd_scripts(checkout, python)
        refuse_unsupported(self._config, self._train)
        files = ["--config_file", str(self._train), "--dataset_config", str(self._dataset)]
        script = _SCRIPT_XL if is_sdxl(config) else _SCRIPT
        self._checkout, self._command = checkout, [str(python.absolute()), script, *files]
        # 400 columns: tqdm must not shorten the bar that `_STEP` parses.
        self._environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "400", **_only(device)}
        self._watcher: threading.Thread | None = None

    def _start(self) -> None:
        """Start sd-scripts, unless the data set is bad or training is finished, which events then report."""
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
        """End sd-scripts with all its children; steps since its last saved state are lost."""
        process, self._stop_requested = self._process, True
        if process is not None and process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_GRACE)
            _signal_group(process.pid, signal.SIGKILL)
        if self._watcher is not None:
            self._watcher.join()

    def _alive(self) -> bool:
        return self._watcher is not None and self._watcher.is_alive()

    def _watch(self, process: subprocess.Popen[bytes], reader: _Reader) -> None:
        """Follow sd-scripts to its end and kill children that it leaves behind."""
        try:
            with self._log.open("a", encoding="utf-8") as log:
                for line in _lines(process):
                    if line and not reader.line(line):
                        log.write(re.sub(r" {20,}", "  ", line.rstrip()) + "\n")  # tqdm pads its bars to 400 columns
                        log.flush()
                    reader.look(process.pid)
                    if reader.failed:
                        break
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            code = process.wait()
            if process.stdout is not None:
                process.stdout.close()
        reader.end(code, self._stop_requested)


class _Reader:
    """Turn printed lines and written files into events; `done` is the number of epochs before the resumed state."""

    def __init__(self, config: TrainingConfig, events: Path, log: Path, done: int) -> None:
        self._config, self._events, self._log, self._done = config, events, log, done
        self._last = config.integer("max_train_epochs")
        self._earlier_events = [event for event, _ in read_events(events)]
        epochs = [event for event in self._earlier_events if isinstance(event, EpochEvent)]
        totals = [event.total_steps for event in self._earlier_events if isinstance(event, StartedEvent)]
        losses = [event.loss for event in self._earlier_events if isinstance(event, StepEvent)]
        self._announced = {event.epoch for event in epochs}
        self._trained = max((event.time_trained for event in epochs if event.epoch <= done), default=0.0)
        self._counts = {"num epochs": self._last, "total optimization steps": totals[-1] if totals else 0}
        self._step, self._loss = done * self._per_epoch, losses[-1] if losses else 0.0
        self._peak, self._last_reported = 0.0, -math.inf
        self._validation: float | None = None
        self._awaited: list[int] = []
        self.failed = self._no_data = self._no_memory = False
        self._began = self._epoch_began = time.monotonic()

    def needless(self) -> bool:
        """Return whether there is nothing to start; report or remove files that an earlier attempt left unreported."""
        c = self._config
        try:
            find_samples(c.train_data_dir, c.text("caption_extension"), c.integer("num_repeats"))
        except BadDataError as error:
            return self._fail(Outcome.BAD_DATA, str(error))
        finished = [event for event in self._earlier_events if isinstance(event, FinishedEvent)]
        if finished and is_complete(_lora(c, self._last)):
            write_event(self._events, finished[-1].changed(at=time.time()))
            return True
        for epoch in sorted(set(range(1, self._last + 1)) - self._announced):
            if epoch <= self._done and is_complete(_lora(c, epoch)):
                self._announce(epoch)
            else:
                _lora(c, epoch).unlink(missing_ok=True)
        return self.failed

    def line(self, text: str) -> bool:
        """Process one printed line; return whether it only shows progress, and so does not belong in the log."""
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
        """Report the epochs whose files are now complete, with the main memory in use."""
        for epoch in [e for e in self._awaited if is_complete(_lora(self._config, e))]:
            self._awaited.remove(epoch)
            with contextlib.suppress(psutil.Error):
                self._peak = max(self._peak, psutil.Process(pid).memory_info().rss / 2**20 if pid else 0.0)
            if epoch not in self._announced and not self.failed:
                self._announce(epoch)

    def end(self, code: int, stopped: bool) -> None:
        """Report how training ended; the exit code of sd-scripts alone does not say."""
        self.look()
        if self.failed:
            return
        if code == 0:
            self._check_result()
        elif stopped:
            write_event(self._events, StoppedEvent(step=self._step))
        elif code < 0:
            name = signal.Signals(-code).name
            hint = ", often for want of memory" if name == "SIGKILL" else ""
            self._fail(Outcome.CRASHED, f"sd-scripts died of {name}{hint}: see {self._log}")
        elif self._no_memory:
            remedy = "lower train_batch_size or resolution, or set gradient_checkpointing"
            self._fail(Outcome.OUT_OF_MEMORY, f"sd-scripts ran out of memory after step {self._step}: {remedy}")
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
            ended = FinishedEvent(step=self._step, time_trained=self._time(), peak_memory_mb=self._peak)
            write_event(self._events, ended)

    def _started(self) -> None:
        total, per_epoch = self._counts["total optimization steps"], self._per_epoch
        self._step, images = self._done * per_epoch, num_images(self._config.train_data_dir)
        derived: Parameters = {"steps_per_epoch": per_epoch, "total_steps": total, "num_images": images}
        event = StartedEvent(step=self._step, total_steps=total, derived=derived, trainable=0)
        write_event(self._events, event)
        self._began = self._epoch_began = time.monotonic()

    def _stepped(self, step: int, loss: float) -> None:
        # A resumed sd-scripts counts steps from 0 again.
        self._step, self._loss = self._done * self._per_epoch + step, loss
        if not math.isfinite(loss):
            remedy = "lower learning_rate or network_alpha"
            self._fail(Outcome.DIVERGED, f"the loss is {loss} at step {self._step}: {remedy}")
        elif time.monotonic() - self._last_reported > _REPORT_SECONDS:
            self._last_reported, epoch = time.monotonic(), self._step / self._per_epoch
            event = StepEvent(
                step=self._step, epoch=epoch, loss=loss, learning_rates=(), time_trained=self._time()
            )  # fmt: skip
            write_event(self._events, event)

    def _announce(self, epoch: int) -> None:
        path = _lora(self._config, epoch)
        if not _examine(path)[0]:
            self._fail(Outcome.DIVERGED, f"the weights in {path} are not finite: lower learning_rate or network_alpha")
            return
        self._announced.add(epoch)
        event = EpochEvent(
            step=epoch * self._per_epoch, epoch=epoch, loss=self._loss, validation_loss=self._validation,
            checkpoint=str(path), seconds=time.monotonic() - self._epoch_began, time_trained=self._time(),
            peak_memory_mb=self._peak,
        )  # fmt: skip
        write_event(self._events, event)

    @property
    def _per_epoch(self) -> int:
        return max(1, self._counts["total optimization steps"] // max(1, self._counts["num epochs"]))

    def _time(self) -> float:
        return self._trained + time.monotonic() - self._began

    def _fail(self, outcome: Outcome, sentence: str) -> bool:
        self.failed = True
        write_event(self._events, FailedEvent(outcome=outcome, sentence=sentence))
        return True


def check_sd_scripts(checkout: Path, python: Path) -> None:
    """Raise ConfigError unless `checkout` is one of sd-scripts and `python` is executable."""
    if not (checkout / _SCRIPT).is_file():
        raise ConfigError(f"{checkout} has no {_SCRIPT}: give the folder of your sd-scripts checkout")
    if not python.is_file() or not os.access(python, os.X_OK):
        raise ConfigError(f"{python} is no program: give the python of the environment sd-scripts runs in")


def is_complete(path: Path) -> bool:
    """Return whether a safetensors file has exactly the bytes that its header lists; False if it is missing."""
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
    """Return whether all weights are finite, whether any lora_up is not zero, and the file's ss_epoch."""
    finite, moved = True, False
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            finite &= bool(tensor.isfinite().all())
            moved |= ".lora_up." in name and bool(tensor.any())
        return finite, moved, str((file.metadata() or {}).get("ss_epoch"))


def _lora(config: TrainingConfig, epoch: int) -> Path:
    """Return the path kohya gives an epoch's file: numbered, except for the last epoch."""
    last = epoch == config.integer("max_train_epochs")
    return config.output_dir / f"{config.output_name}{'' if last else f'-{epoch:06d}'}.safetensors"


def _last_state(config: TrainingConfig) -> tuple[int, list[str]]:
    """Return the newest epoch with a complete state, and the options to resume from it; 0 and none to start anew."""
    for epoch in range(config.integer("max_train_epochs") - 1, 0, -1):
        state = config.output_dir / f"{config.output_name}-{epoch:06d}-state"
        # The random states are written last, so their file marks the state as complete.
        whole = is_complete(state / "model.safetensors") and zipfile.is_zipfile(state / "random_states_0.pkl")
        if whole and is_complete(_lora(config, epoch)):
            # sd-scripts' own count of epochs is wrong after a second resume, so it is passed in.
            return epoch, ["--resume", str(state), "--initial_epoch", str(epoch + 1)]
    return 0, []


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield the lines that the process prints, and None after each read, until it and its output have ended."""
    assert process.stdout is not None
    pipe, rest, poll = process.stdout.fileno(), b"", select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        ended = process.poll() is not None  # check before reading: then all its output is already in the pipe
        ready = bool(poll.poll(_POLL_SECONDS * 1000))
        data = os.read(pipe, 1 << 16) if ready else b""
        *lines, rest = re.split(rb"[\r\n]+", rest + data)
        if _STEP.search(rest.decode("utf-8", "replace")):  # the progress bar ends its line only at the next step
            lines, rest = [*lines, rest], b""
        yield from (line.decode("utf-8", "replace") for line in lines)
        yield None
        if not data and (ready or ended):
            yield rest.decode("utf-8", "replace")
            return


def _only(device: str) -> dict[str, str]:
    """Return the environment variables that restrict sd-scripts to one device."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": dict(enumerate(visible)).get(int(index)) or index} if index else {}


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _end_leftovers(train: Path) -> None:
    """Kill what an earlier attempt at the same trial left running: two would write the same files."""
    words = {"--config_file", str(train)}
    left = [p for p in psutil.process_iter(["cmdline"]) if words <= set(p.info["cmdline"] or ())]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, _KILL_GRACE)
