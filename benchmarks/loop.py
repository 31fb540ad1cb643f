"""What the loop itself costs: seconds an epoch and a trial beside training and drawing, and memory over many epochs.

    python -m benchmarks.loop [--epochs 500] [--quick] [--json]

A campaign runs as always - a Prefect server and a database of its own, a subflow for each epoch, store, Optuna,
dashboard, analysis - with the sd-scripts launcher on a script that trains nothing and writes the same small LoRA for
every epoch at once. Trials of few and of many epochs are run; the slope over the number of epochs, less drawing and
measuring (timed by themselves in the same process), is what an epoch costs, and the rest is what a trial costs.
Prompts and pictures are few and small, as their time is left out anyway.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from demo.workspace import lay_out
from flows.runtime.prefect_environment import quiet_libraries
from flows.runtime.prefect_server import prefect_server
from schema.runs import Outcome, TrainingRun

_FEW, _PICTURES = 2, 8
_SETTLED = 20  # epochs until everything that is kept once is in memory
_TRAINER = """
import shutil, sys, time, tomllib
from pathlib import Path
c = tomllib.loads(Path(dict(zip(sys.argv[1::2], sys.argv[2::2]))["--config_file"]).read_text("utf-8"))
out, name, epochs = Path(c["output_dir"]), c["output_name"], c["max_train_epochs"]
out.mkdir(parents=True, exist_ok=True)
print("  num epochs / : %d" % epochs)
print("  total optimization steps / : %d" % epochs)
for epoch in range(1, epochs + 1):
    time.sleep(SECONDS)
    print("epoch %d/%d" % (epoch, epochs), flush=True)
    sys.stderr.write("\\rsteps: 100%%|##| %d/%d [00:01<00:01,  4.62s/it, avr_loss=0.1]" % (epoch, epochs))
    file = out / (name + ("" if epoch == epochs else "-%06d" % epoch) + ".safetensors")
    print("\\nsaving checkpoint: %s" % file, flush=True)
    shutil.copy(Path(__file__).with_name("last.safetensors" if epoch == epochs else "lora.safetensors"), file)
"""
_CAMPAIGN = """
[campaign]
name = "{name}"
base_model = "{demo}/base"
dataset = "{demo}/portraits"
prompts = "{demo}/prompts.toml"
trainer = "sd-scripts"
sd_scripts = "{checkout}"
sd_scripts_python = "{python}"
sampler = "random"
parallel = {parallel}
[budget]
trials = {trials}
[search]
learning_rate = {{ low = 1e-5, high = 1e-3, log = true }}
[fixed]
max_train_epochs = {epochs}
[gate]
enabled = false
[stopping]
enabled = false
"""


class Night:
    """A home in which campaigns with the idle trainer run."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        """Args: seconds: that the trainer sleeps each epoch."""
        lay_out(folder / "demo")
        for extra in sorted((folder / "demo" / "portraits").iterdir())[2 * _PICTURES :]:
            extra.unlink()
        prompts = (folder / "demo" / "prompts.toml").read_text()
        first = prompts.index("[[prompts]]", prompts.index("[[prompts]]") + 1)
        (folder / "demo" / "prompts.toml").write_text(prompts[:first].replace("steps = 15", "steps = 2"))
        self.folder, self._checkout = folder, folder / "trainer"
        self._checkout.mkdir()
        (self._checkout / "train_network.py").write_text(
            textwrap.dedent(_TRAINER).replace("SECONDS", str(seconds)), "utf-8"
        )

    def campaign(self, name: str, trials: int, epochs: int, parallel: int = 1) -> Path:
        """Write a campaign of so many trials of so many epochs, `parallel` at a time."""
        down = torch.full((2, 64), 1e-3)
        state = {f"{_LAYER}.lora_down.weight": down, f"{_LAYER}.lora_up.weight": torch.full((64, 2), 1e-3),
                 f"{_LAYER}.alpha": torch.tensor(2.0)}  # fmt: skip
        save_file(state, self._checkout / "lora.safetensors", {"ss_epoch": "1"})
        save_file(state, self._checkout / "last.safetensors", {"ss_epoch": str(epochs)})
        path = self.folder / f"{name}.toml"
        path.write_text(
            _CAMPAIGN.format(
                name=name, demo=self.folder / "demo", checkout=self._checkout, python=sys.executable, trials=trials,
                epochs=epochs, parallel=parallel,
            )
        )  # fmt: skip
        return path


_LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def main() -> None:
    """Print the figures."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        quiet_libraries(folder / "prefect")
        from flows.runtime import wiring

        night = Night(folder)
        with wiring.session():
            services = wiring.open_home(str(folder / "home"))
            with prefect_server(folder / "prefect", services.prefect_url):
                figures = _measure(night, args)
    for name, value in figures.items():
        print(f"{name:28s} {value}")
    if args.json:
        print(json.dumps(figures))


def _measure(night: Night, args: argparse.Namespace) -> dict[str, float | int | None]:
    many = args.many
    short = _trial_seconds(night, "short", args.trials, _FEW)
    direct = _drawing(night)
    long = _trial_seconds(night, "long", args.trials, many)
    slope = (long - short) / (many - _FEW)
    growth = None
    if args.epochs:
        memory: list[float] = []
        _run(night, "memory", -(-args.epochs // 50), 50, memory)
        growth = memory[-1] - memory[_SETTLED]
    return {
        "epoch_overhead_s": round(slope - direct, 3),
        "trial_overhead_s": round(short - _FEW * slope, 3),
        "rss_growth_mb_500_epochs": None if growth is None else round(growth * 500 / args.epochs, 1),
        "epochs_watched": args.epochs,
        "drawing_and_measuring_s": round(direct, 3),
    }


def _trial_seconds(night: Night, name: str, trials: int, epochs: int) -> float:
    """Median seconds from a trial's start to its end, the analysis behind it included."""
    starts = _run(night, name, trials + 1, epochs, [])
    return statistics.median(b - a for a, b in itertools.pairwise(starts[1:]))  # the first loads the model


def _run(night: Night, name: str, trials: int, epochs: int, memory: list[float]) -> list[float]:
    """Run a campaign; when each trial began, and the end. Resident MiB after each epoch go into `memory`."""
    from flows.campaign import campaign
    from flows.runtime import progress

    class Watch(progress.LogListener):
        starts: list[float] = []  # noqa: RUF012 - one instance

        def trial_started(self, *_: object) -> None:
            self.starts.append(time.perf_counter())

        def measured(self, *_: object) -> None:
            memory.append(psutil.Process().memory_info().rss / 2**20)

        def trial_finished(self, run: TrainingRun) -> None:
            if run.outcome is not Outcome.OK or run.epochs_done != epochs:
                raise SystemExit(f"{run.run_name}: {run.outcome} after epoch {run.epochs_done}: {run.failure}")

    watch = Watch()
    Watch.starts = []
    progress.listener = watch
    campaign(str(night.campaign(name, trials, epochs)), str(night.folder / "home"))
    return [*watch.starts, time.perf_counter()]


def _drawing(night: Night) -> float:
    """Seconds of drawing and measuring one epoch's pictures by themselves, and of the files they are kept in."""
    from flows.runtime import wiring
    from tasks.metrics.suite import measure
    from tasks.sampling.pictures import save_pictures, save_sheet

    context = wiring.open_campaign(str(night.folder / "short.toml"), str(night.folder / "home"))
    prompts = [p.expectation for p in context.suite.prompts for _ in context.suite.seeds]
    checkpoint = night.folder / "trainer" / "lora.safetensors"

    def once() -> None:
        pictures = context.sampler().draw(context.suite, checkpoint)
        measure(pictures, prompts)
        save_pictures(pictures, context.suite, night.folder / "scratch")
        save_sheet(pictures, context.suite, night.folder / "scratch" / "sheet.png")

    return statistics.median(_timed(once) for _ in range(9))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=500, help="epochs over which memory is watched")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--many", type=int, default=12, help="epochs of a long trial")
    parser.add_argument("--quick", action="store_true", help="fewer trials, 50 epochs for the memory")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    if args.quick:
        args.trials, args.epochs = 2, 50
    return args


if __name__ == "__main__":
    main()
