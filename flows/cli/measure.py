"""Commands that measure pictures: of any folder, or drawn with LoRA files of earlier days."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schema.errors import ConfigError, PixelloopError
from schema.prompts import Expectation, expectation_of, file_name, load_prompts
from schema.readers import read_text
from schema.runs import EpochMetrics, PictureMetrics
from schema.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 32  # pictures read at a time; measuring bounds its own memory
_WIDE = 100
"""Characters a line from which hex codes fit into the table."""

_COLUMNS = {
    "overall": "all", "colour": "col", "style": "style", "background_accuracy": "bg", "hair_accuracy": "hair",
    "crown_accuracy": "crown", "pixel_art_purity": "pure", "photorealism": "photo", "palette_size": "pal",
    "grid_scale": "grid",
}  # fmt: skip

out = Console()
err = Console(stderr=True)


@dataclass(frozen=True)
class Shot:
    """A picture file with what it is held against."""

    path: Path
    expectation: Expectation
    pixels: Tensor  # (3, H, W) uint8
    enlarged: float = 1.0  # times: above 1 for pixel art at its native size, below 1 for large pictures


def measure(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Option(help="What the pictures promise; else each one's caption file says it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder to write each picture to, with the regions found in it.")
    ] = None,
) -> None:
    """Measure pictures: colours against what was promised, pixel grid, style.

    Higher is better of all but photo; pal is a number of colours, grid the size of an art pixel; - is not promised, or
    not found. Sprites in few colours and of at most 128 pixels are taken as drawn at their native size.

    Example: [bold]pixelloop measure samples/ --prompt "pixel art, green background (#22aa44), brown hair"[/]
    """
    device = _device()
    files = _files(pictures)
    shots, broken = _read(files, prompt)
    found = _measured(shots, device)
    if overlay is not None:
        _overlays(shots, overlay, device)
    if as_json:
        _json({str(s.path): m.model_dump(mode="json") for s, m in zip(shots, found, strict=True)})
    elif found:
        from tasks.metrics.suite import summarise

        rows = [(_name(s.path, files), m) for s, m in zip(shots, found, strict=True)]
        mean = summarise(found).mean
        out.print(_table("picture", [*rows, ("mean", mean)] if len(rows) > 1 and mean else rows))
    _complain(broken)


def retest(
    checkpoints: Annotated[list[Path], typer.Argument(help="LoRA files, or folders of them.", show_default=False)],
    base_model: Annotated[
        str, typer.Option(help="Base model: a diffusers folder, a hub id, or one .safetensors file.")
    ],
    prompts: Annotated[Path, typer.Option(help="prompts.toml")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for pictures and sheets.")] = Path("retest"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Draw the prompt suite with LoRA files of any origin, and measure the pictures.

    Example: [bold]pixelloop retest old-loras/ --base-model models/sd15 --prompts prompts.toml[/]
    """
    from tasks.sampling.pictures import save_pictures, save_sheet
    from tasks.sampling.pipeline import Sampler

    files = _under(checkpoints, {".safetensors"}, "LoRA files")
    suite = load_prompts(prompts)
    sampler = Sampler(base_model, _device(), Settings().threads)
    tested: dict[str, EpochMetrics] = {}
    broken = []
    names: set[str] = set()
    for file in files:
        name = _free(file_name(file.stem), names)
        try:
            drawn = sampler.draw(suite, file)
        except PixelloopError as error:
            broken.append(str(error))
            continue
        save_pictures(drawn, suite, folder / name)
        save_sheet(drawn, suite, folder / f"{name}.png")
        tested[_name(file, files)] = _epoch_metrics(drawn, suite.prompts, len(suite.seeds))
    if as_json:
        _json({name: metrics.model_dump(mode="json") for name, metrics in tested.items()})
    elif tested:
        out.print(_table("LoRA", [(name, m.mean) for name, m in tested.items() if m.mean]))
        out.print(f"sheets  {folder}", soft_wrap=True)
    _complain(broken)


def _free(name: str, taken: set[str]) -> str:
    """A name that no file before has: itself, or with a number; it is taken then."""
    free = next(n for n in itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2))) if n not in taken)
    taken.add(free)
    return free


def _device() -> str:
    """The device of the settings; its CPU threads are set as well."""
    import torch

    from tasks.gpus import pick_device

    settings = Settings()
    torch.set_num_threads(settings.threads)
    return pick_device(settings.device)


def _epoch_metrics(drawn: Tensor, prompts: Sequence[Any], seeds: int) -> EpochMetrics:
    from tasks.metrics.sets import with_set_measures
    from tasks.metrics.suite import as_bytes, summarise
    from tasks.metrics.suite import measure as measure_pictures

    each = [prompt for prompt in prompts for _ in range(seeds)]
    metrics = summarise(measure_pictures(drawn, [p.expectation for p in each]))
    return with_set_measures(metrics, as_bytes(drawn), [p.name for p in each], None)


def _files(pictures: Sequence[Path]) -> list[Path]:
    from tasks.training.dataset import ENDINGS

    return _under(pictures, ENDINGS, "pictures")


def _under(places: Sequence[Path], endings: set[str], what: str) -> list[Path]:
    """Files themselves, and those with these endings in folders, in order.

    Raises:
        ConfigError: a place does not exist, or there is nothing there.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise ConfigError(f"{place} does not exist: check the path")
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in endings) if place.is_dir() else [place]
        found += inside
    if not found:
        raise ConfigError(f"no {what} in {', '.join(map(str, places))}: give {', '.join(sorted(endings))} files")
    return found


def _read(files: Sequence[Path], prompt: str | None) -> tuple[list[Shot], list[str]]:
    """Pictures that can be read, and a sentence for each that cannot."""
    from tasks.metrics.native import read_picture

    shots, broken = [], []
    for file in files:
        try:
            promised = expectation_of(_promise(file) if prompt is None else prompt)
            shots.append(Shot(file, promised, *read_picture(file)))
        except PixelloopError as error:
            broken.append(str(error))
    return shots, broken


def _promise(file: Path) -> str:
    from tasks.training.dataset import MOST_CAPTION_BYTES

    caption = file.with_suffix(".txt")
    return read_text(caption, MOST_CAPTION_BYTES) if caption.exists() else ""


def _measured(shots: Sequence[Shot], device: str) -> list[PictureMetrics]:
    """Metrics in the order of the pictures, measured in batches of one size."""
    from tasks.metrics.native import on_file
    from tasks.metrics.suite import measure as measure_pictures

    found: dict[int, PictureMetrics] = {}
    for some in _batches(shots):
        expectations = [shots[i].expectation for i in some]
        found.update(zip(some, measure_pictures(_stack(shots, some, device), expectations), strict=True))
    return [on_file(found[i], shot.enlarged) for i, shot in enumerate(shots)]


def _overlays(shots: Sequence[Shot], folder: Path, device: str) -> None:
    from tasks.metrics.overlay import save_overlays

    folder.mkdir(parents=True, exist_ok=True)
    for some in _batches(shots):
        files = [folder / f"{i:04d}-{shots[i].path.stem}.png" for i in some]
        save_overlays(_stack(shots, some, device), [shots[i].expectation for i in some], files)


def _batches(shots: Sequence[Shot]) -> list[list[int]]:
    """Indices of pictures of one size, at most a batch of them together."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, shot in enumerate(shots):
        by_size.setdefault(tuple(shot.pixels.shape), []).append(index)
    return [some[i : i + _BATCH] for some in by_size.values() for i in range(0, len(some), _BATCH)]


def _stack(shots: Sequence[Shot], some: Sequence[int], device: str) -> Tensor:
    import torch

    return torch.stack([shots[i].pixels for i in some]).to(device)


def _table(what: str, rows: Sequence[tuple[str, PictureMetrics]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(what, overflow="fold")
    colours = ("background_colour", "hair_colour") if out.width >= _WIDE else ()
    for heading in (*_COLUMNS.values(), *(name.removesuffix("_colour") for name in colours)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for name, metrics in rows:
        cells = [_number(getattr(metrics, field), field) for field in _COLUMNS]
        table.add_row(escape(name), *cells, *(getattr(metrics, field) or "" for field in colours))
    return table


def _number(value: float | None, field: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if field == "grid_scale" else f"{value:.0f}"


def _name(path: Path, among: Sequence[Path]) -> str:
    """The file's name, or its path where another file has the same name."""
    return path.name if sum(other.name == path.name for other in among) == 1 else str(path)


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _complain(broken: Sequence[str]) -> None:
    """Say what could not be used, after everything else is done."""
    for sentence in broken:
        err.print(f"[red]pixelloop:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    if broken:
        raise typer.Exit(2)
