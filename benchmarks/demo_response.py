"""How the demo's quality answers to its parameters: no effect, good, collapse.

    python -m benchmarks.demo_response [--quick] [--json] [--seeds 3] [--workers 2]

Changes one parameter at a time around a good setting, trains each with several seeds by the real trainer,
draws and measures every epoch, and prints mean and standard deviation over seeds. A demo whose response
were flat would teach an optimiser nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from demo.workspace import lay_out
from optimizer.control.objective import quality_of
from schema.campaign import load_campaign
from schema.parameters import Parameters, with_defaults
from schema.prompts import PromptSuite, load_prompts
from tasks.metrics.suite import measure, summarise
from tasks.sampling.pipeline import Sampler
from tasks.training.config import write_config
from tasks.training.events import EpochEvent, FailedEvent
from tasks.training.launch import TrainerProcess

GOOD: Parameters = {
    "learning_rate": 3e-3, "network_dim": 16, "network_alpha": 16, "conv_dim": 16, "keep_tokens": 1,
    "shuffle_caption": True,
}  # fmt: skip
SWEEPS: dict[str, list[Parameters]] = {
    "learning_rate": [{"learning_rate": v} for v in (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)],
    "network_dim": [{"network_dim": v, "network_alpha": v} for v in (2, 8, 64)],
    "network_alpha": [{"network_alpha": v} for v in (1, 64)],
    "conv_dim": [{"conv_dim": 0}],
    "captions": [{"shuffle_caption": False}, {"keep_tokens": 0}],
}


@dataclass(frozen=True)
class Response:
    """Qualities of one setting: [seed][epoch], with nan-free lists cut where a run ended."""

    sweep: str
    change: Parameters
    curves: list[list[float]]
    failures: list[str]

    @property
    def best(self) -> tuple[float, float]:
        """Mean and standard deviation over seeds of the best epoch's quality."""
        bests = [max(curve, default=0.0) for curve in self.curves]
        return statistics.mean(bests), statistics.stdev(bests) if len(bests) > 1 else 0.0

    def line(self) -> str:
        """One row of the table."""
        mean, spread = self.best
        name = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.change.items()) or "good"
        epochs = (
            " ".join(f"{statistics.mean(at):5.1f}" for at in zip(*self.curves, strict=False)) if self.curves else ""
        )
        return f"{name:42s} {mean:5.1f} ± {spread:4.1f}   by epoch {epochs}   {'; '.join(sorted(set(self.failures)))}"


def run(folder: Path, parameters: Parameters, sampler: Sampler, suite: PromptSuite) -> tuple[list[float], str]:
    """Train one setting to its end; the quality of each epoch, and the sentence of a failure."""
    file = load_campaign(folder / "campaign.toml")
    place = Path(tempfile.mkdtemp(dir=folder))
    fixed = {**file.fixed, **parameters}
    write_config(
        place / "trial.toml", with_defaults(fixed), base_model=file.base_model, dataset_dir=file.dataset_dir,
        output_dir=place / "checkpoints", output_name="sweep", cache_dir=folder / "latents",
    )  # fmt: skip
    expectations = [p.expectation for p in suite.prompts for _ in suite.seeds]
    curve, failure = [], ""
    with TrainerProcess(place / "trial.toml", place, device="cpu", threads=1) as trainer:
        for event in trainer.follow():
            if isinstance(event, EpochEvent):
                metrics = summarise(measure(sampler.draw(suite, Path(event.checkpoint)), expectations))
                curve.append(quality_of(metrics) or 0.0)
            elif isinstance(event, FailedEvent):
                failure = str(event.outcome)
    return curve, failure


def respond(folder: Path, sweep: str, change: Parameters, seeds: int, sampler: Sampler, suite: PromptSuite) -> Response:
    """One setting with all its seeds."""
    ended = [run(folder, {**GOOD, **change, "seed": seed}, sampler, suite) for seed in range(1, seeds + 1)]
    return Response(sweep, change, [curve for curve, _ in ended], [failure for _, failure in ended if failure])


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="learning rates only, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="settings trained side by side")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = load_campaign(lay_out(folder))
        suite = load_prompts(file.prompts_file)
        settings = [("good", Parameters())] + [(s, c) for s, cs in SWEEPS.items() for c in cs]
        if args.quick:
            settings = [(s, c) for s, c in settings if s in ("good", "learning_rate")]
        seeds = 1 if args.quick else args.seeds

        def work(setting: tuple[str, Parameters]) -> Response:
            response = respond(folder, *setting, seeds, Sampler(file.base_model, "cpu", 1), suite)
            print(response.line(), flush=True)
            return response

        with ThreadPoolExecutor(args.workers) as pool:
            responses = list(pool.map(work, settings))
    best = max(r.best[0] for r in responses)
    rates = [r.best[0] for r in responses if r.sweep == "learning_rate"]
    if args.json:
        print(json.dumps({"best": best, "no_effect": rates[0], "collapse": rates[-1], "settings": len(responses)}))


if __name__ == "__main__":
    main()
