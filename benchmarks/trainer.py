"""How fast a LoRA trains: ours against sd-scripts and against the loop of diffusers' example, in one command.

    python -m benchmarks.trainer [--model sd15|sdxl|demo] [--resolution 128] [--steps 6] [--rounds 2]
        [--device cuda] [--precision bf16] [--sd-scripts DIR --sd-scripts-python PYTHON] [--quick] [--json]

All train the UNet alone on the same pictures, at batch 1, from the same model of the published architecture with
random weights, each in a process of its own, in turns. Ours and sd-scripts adapt the same 192 layers at rank 8;
diffusers' example adapts only the attention's, at rank 4, which is less work. Told are medians over rounds of:
seconds a step without the first, CPU seconds of whole steps, seconds from the start of the process to the end of
the first step (ours cold, and warm: forked from a process that has trained before), and the largest memory. A
difference of losses from kohya's formulas comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.architectures import write_random_model
from benchmarks.loss_parity import loss_parity
from demo.portraits import write_dataset
from schema.parameters import Parameters, with_defaults
from tasks.training.config import load_config, write_config
from tasks.training.events import Event, FailedEvent, StepEvent, read_events
from tasks.training.launch import TrainerProcess
from tasks.training.sd_scripts import SdScriptsProcess
from tasks.training.warm import WarmTrainer

_DEMO = Path(__file__).parent.parent / "demo" / "base"
_PICTURES = 4


@dataclass
class Watch:
    """What a process and its children were seen to use: (seconds since 1970, CPU seconds), and resident MiB."""

    cpu: list[tuple[float, float]] = field(default_factory=list)
    peak_mb: float = 0.0

    def cpu_at(self, at: float) -> float:
        """CPU seconds used by then."""
        times, used = zip(*self.cpu, strict=True)
        return float(np.interp(at, times, used))


@dataclass(frozen=True)
class Measured:
    """One training: when it started (seconds since 1970), its steps' numbers and times, and what it used."""

    started: float
    steps: list[tuple[int, float]]
    watch: Watch

    @property
    def first_step(self) -> float:
        """Seconds to the end of the first step."""
        return self.steps[0][1] - self.started

    @property
    def step(self) -> float:
        """Seconds a step, the first left out: it chooses kernels."""
        (first, begin), (last, end) = self.steps[0], self.steps[-1]
        return (end - begin) / (last - first) if last > first else float("nan")

    @property
    def cpu_step(self) -> float:
        """CPU seconds a step, the first left out: what other programs on the machine hardly change."""
        (first, begin), (last, end) = self.steps[0], self.steps[-1]
        return (self.watch.cpu_at(end) - self.watch.cpu_at(begin)) / (last - first) if last > first else float("nan")


@dataclass(frozen=True)
class Setting:
    """What all of them train."""

    model: Path
    data: Path
    folder: Path
    args: argparse.Namespace

    def config(self, name: str) -> Path:
        """Our configuration in a folder of its own."""
        args, folder = self.args, self.folder / name
        chosen: Parameters = {
            "network_dim": 8, "network_alpha": 8, "network_train_unet_only": True, "learning_rate": 1e-4,
            "resolution": args.resolution, "mixed_precision": args.precision, "max_train_epochs": 1,
            "num_repeats": -(-args.steps // _PICTURES), "sdpa": True, "torch_compile": args.compile,
        }  # fmt: skip
        write_config(
            folder / "trial.toml", with_defaults(chosen), base_model=str(self.model), dataset_dir=self.data,
            output_dir=folder / "checkpoints", output_name="lora", cache_dir=self.folder / "latents",
        )  # fmt: skip
        return folder / "trial.toml"


def ours(setting: Setting, name: str, warm: WarmTrainer | None) -> Measured:
    """Our trainer, started as a campaign does."""
    config, args = setting.config(name), setting.args
    started = time.time()
    with TrainerProcess(config, config.parent, args.device, args.threads, warm) as trainer:
        return _watched(started, trainer, config.parent / "events.jsonl")


def sd_scripts(setting: Setting, name: str) -> Measured:
    """The user's checkout, by our launcher, which reads its progress bar."""
    path, args = setting.config(name), setting.args
    started = time.time()
    python = args.sd_scripts_python
    with SdScriptsProcess(
        load_config(path), path.parent, args.device, args.threads, args.sd_scripts, python
    ) as trainer:
        return _watched(started, trainer, path.parent / "events.jsonl")


def diffusers_example(setting: Setting) -> Measured:
    """The loop of the example."""
    args = setting.args
    words = [sys.executable, "-m", "benchmarks.trainer_diffusers", str(setting.model), str(setting.data)]
    for option in ("resolution", "steps", "device", "threads", "precision"):
        words += [f"--{option}", str(getattr(args, option))]
    started = time.time()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=_environment(args)) as process:
        assert process.stdout is not None
        with _watching(process.pid) as watch:
            lines = [json.loads(line) for line in process.stdout if line.startswith('{"step"')]
    return Measured(started, [(line["step"], line["at"]) for line in lines], watch)


def _tokenizer_for_sd_scripts(folder: Path) -> None:
    """sd-scripts asks the hub for CLIP's tokenizer; where no hub answers, the model's own stands in its place."""
    known = folder / "hub" / "models--openai--clip-vit-large-patch14"
    files = known / "snapshots" / "0"
    if not files.exists():
        shutil.copytree(_DEMO / "tokenizer", files)
        vocabulary = json.loads((files / "tokenizer.json").read_text())["model"]["vocab"]
        (files / "vocab.json").write_text(json.dumps(vocabulary))
        (known / "refs").mkdir()
        (known / "refs" / "main").write_text("0")
    os.environ |= {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}


def _watched(started: float, trainer: TrainerProcess, events: Path) -> Measured:
    with _watching(trainer.pid) as watch:
        told: list[Event] = list(trainer.follow())
    failed = [event.sentence for event in told if isinstance(event, FailedEvent)]
    if failed:
        sys.exit(f"{events.parent.name}: {failed[0]}")
    steps = [(e.step, e.at) for e, _ in read_events(events) if isinstance(e, StepEvent) and e.step]
    return Measured(started, steps, watch)


@contextmanager
def _watching(pid: int) -> Iterator[Watch]:
    """Look at a process and its children, as long as the block runs."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
                used = sum(sum(p.cpu_times()[:2]) for p in family)
                watch.cpu.append((time.time(), used))
                watch.peak_mb = max(watch.peak_mb, sum(p.memory_info().rss for p in family) / 2**20)
            except psutil.Error:
                continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def _environment(args: argparse.Namespace) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(args.threads)}


def main() -> None:
    """Print the table."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        model = _DEMO if args.model == "demo" else write_random_model(folder / args.model, args.model)
        data = folder / "pictures"
        if not data.exists():
            write_dataset(data, _PICTURES, 1, args.resolution)
        if args.sd_scripts:
            _tokenizer_for_sd_scripts(folder)
        setting = Setting(model, data, Path(tempfile.mkdtemp(dir=folder)), args)
        figures = _figures(_measure(setting), args)
    for name, value in figures.items():
        print(f"{name:28s} {value:.4g}" if isinstance(value, float) else f"{name:28s} {value}")
    if args.json:
        print(json.dumps(figures))


def _measure(setting: Setting) -> dict[str, list[Measured]]:
    """Every way in turns, so that a busy machine slows all of them."""
    warm = WarmTrainer(setting.folder / "warm.log", setting.args.threads)
    ways: dict[str, Callable[[str], Measured]] = {
        "cold": lambda name: ours(setting, name, None),
        "diffusers": lambda _: diffusers_example(setting),
        "warm": lambda name: ours(setting, name, warm),
    }
    if setting.args.sd_scripts:
        ways["sd_scripts"] = lambda name: sd_scripts(setting, name)
    ours(setting, "before", warm)  # loads the model, fills the caches of latents and of kernels
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    for turn in range(setting.args.rounds):
        for way, run in ways.items():
            found[way].append(run(f"{way}-{turn}"))
            print(
                f"{way} {turn}: {found[way][-1].step:.3f} s/step, {found[way][-1].cpu_step:.3f} CPU s/step, first after {found[way][-1].first_step:.2f} s"
            )
    warm.close()
    return found


def _figures(found: dict[str, list[Measured]], args: argparse.Namespace) -> dict[str, object]:
    def middle(way: str, read: Callable[[Measured], float]) -> float | None:
        return statistics.median(read(m) for m in found[way]) if way in found else None

    def ratio(peer: str, mine: str, read: Callable[[Measured], float]) -> float | None:
        """Median of the rounds' own ratios: in a round both met the same machine."""
        if peer not in found:
            return None
        pairs = zip(found[peer], found[mine], strict=True)
        return statistics.median(read(theirs) / read(ours) for theirs, ours in pairs)

    def both(peer: str, read: Callable[[Measured], float]) -> float | None:
        """Against the mean of our two ways to start, which train alike."""
        ratios = [ratio(peer, way, read) for way in ("cold", "warm")]
        return statistics.mean(r for r in ratios if r is not None) if peer in found else None

    nearest = "sd_scripts" if "sd_scripts" in found else "diffusers"
    return {
        "steps_ratio_sd_scripts": both("sd_scripts", lambda m: m.step),
        "steps_ratio_diffusers": both("diffusers", lambda m: m.step),
        "cpu_ratio_sd_scripts": both("sd_scripts", lambda m: m.cpu_step),
        "cpu_ratio_diffusers": both("diffusers", lambda m: m.cpu_step),
        "first_step_ratio": ratio(nearest, "warm", lambda m: m.first_step),
        "first_step_ratio_cold": ratio(nearest, "cold", lambda m: m.first_step),
        "peak_memory_mb": middle("cold", lambda m: m.watch.peak_mb),
        "peak_memory_mb_diffusers": middle("diffusers", lambda m: m.watch.peak_mb),
        "peak_memory_mb_sd_scripts": middle("sd_scripts", lambda m: m.watch.peak_mb),
        "loss_parity": loss_parity(),
        "seconds_a_step": middle("warm", lambda m: m.step),
        "seconds_to_first_step": middle("warm", lambda m: m.first_step),
        "model": args.model,
        "device": args.device,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="sd15", choices=("sd15", "sdxl", "demo"))
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="no", choices=("no", "fp16", "bf16"))
    parser.add_argument("--compile", action="store_true", help="ours with torch_compile")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--sd-scripts", type=Path, help="a checkout; left out where none is given")
    parser.add_argument("--sd-scripts-python", type=Path, help="python of its environment")
    parser.add_argument("--work", type=Path, help="folder that keeps the model for the next time")
    parser.add_argument("--quick", action="store_true", help="the demo's model, one round")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    if args.quick:
        args.model, args.resolution, args.rounds = "demo", 64, 1
        args.sd_scripts = None  # it knows full-size models only
    return args


if __name__ == "__main__":
    main()
