"""Files that hold what nobody expects: each is a sentence, and all others are imported."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from schema.errors import ConfigError
from tasks.history.lora import read_lora
from tasks.history.merge import Imported, assemble
from tasks.history.read import read_all
from tasks.store.memory import MemoryStore

NOW = datetime(2026, 11, 28, tzinfo=UTC)
UP, DOWN = "lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"


def imported(*places: Path) -> tuple[list[Imported], list[str]]:
    """What the command does, on a store in memory."""
    found, unread = read_all([str(place) for place in places], None)
    store = MemoryStore()
    runs, notes = assemble(found, store.history(), [], NOW)
    for run in runs:
        run.keep(store)
    return runs, [*unread, *notes]


def header(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


def tensors(places: Mapping[str, list[int]]) -> bytes:
    described = {name: {"dtype": "F32", "shape": [1], "data_offsets": place} for name, place in places.items()}
    return json.dumps(described).encode()


def lora(path: Path, weights: Mapping[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    save_file(dict(weights or {UP: torch.ones(4, 2), DOWN: torch.ones(2, 4)}), path, metadata)
    return path


def aliases(levels: int) -> bytes:
    """A few lines of YAML that stand for ten to the power of their number of values."""
    lines = [b"a0: &a0 [1]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, levels)]
    return b"\n".join(lines)


BROKEN: dict[str, bytes] = {
    "negative.safetensors": header(tensors({"a": [-4, 4]}), bytes(4)),
    "backwards.safetensors": header(tensors({"a": [8, 4], "b": [0, 8]}), bytes(8)),
    "overlap.safetensors": header(tensors({UP: [0, 4], DOWN: [2, 6]}), bytes(6)),
    "brackets.safetensors": header(b"[" * 200_000),
    "deep.safetensors": header(b'{"a":' * 20_000),
    "list.safetensors": header(b"[]"),
    "number.safetensors": header(b'{"a": 5}'),
    "shape.safetensors": header(b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}', bytes(4)),
    "huge.safetensors": struct.pack("<Q", 2**63) + b"{}",
    "metadata.safetensors": header(b'{"__metadata__": {"ss_epoch": 5}}'),
    "metalist.safetensors": header(b'{"__metadata__": [1]}'),
    "deep.json": b"[" * 20_000,
    "deep.yaml": b"[" * 20_000,
    "deep.toml": b"a = " + b"[" * 20_000,
    "aliases.yaml": aliases(12),
    "dates.yaml": b"- {run_name: x, epoch: 2026-11-28}\n",
    "epoch.json": b'[{"run_name": "x", "epoch": 99999999999999999999999999}]',
    "epoch.csv": b"run_name,epoch\nx,99999999999999999999999999\n",
    "score.json": b'[{"run_name": "x", "epoch": 1, "visual": NaN}]',
    "images.json": b'[{"run_name": "x", "num_images": "many"}]',
    "name.json": b'[{"run_name": {"a": 1}}]',
    "half.json": b'[{"run_name": "x", "epoch": 1.5}]',
}


def test_one_odd_file_never_ends_an_import(tmp_path: Path) -> None:
    for name, data in BROKEN.items():
        (tmp_path / name).write_bytes(data)
    lora(tmp_path / "good.safetensors")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    runs, notes = imported(tmp_path)
    assert [run.run.run_name for run in runs] == ["good"]
    for name in BROKEN:
        told = [note for note in notes if f"/{name}" in note or note.startswith(name)]
        assert len(told) == 1, (name, told)
        assert len(told[0]) < 500
        assert "\n" not in told[0]
    assert not [note for note in notes if "pipe.json" in note or "zero.csv" in note]


def test_files_that_are_named_one_by_one_are_read_past_an_odd_one(tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(BROKEN["negative.safetensors"])
    runs, notes = imported(tmp_path / "odd.safetensors", lora(tmp_path / "good.safetensors"))
    assert ([run.run.run_name for run in runs], len(notes)) == (["good"], 1)
    os.mkfifo(tmp_path / "pipe.json")
    for place in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="no regular file"):
            imported(place)


def test_a_table_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ConfigError, match=r"a.csv has 1048576 MiB, at most 64 can be imported"):
        imported(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ss_network_args", "5"),
        ("ss_network_args", "true"),
        ("ss_datasets", "{}"),
        ("ss_datasets", "[1, null]"),
        ("ss_datasets", '[{"subsets": null}]'),
        ("ss_dataset_dirs", "[1]"),
        ("ss_dataset_dirs", '{"10_k": 5}'),
        ("ss_dataset_dirs", '{"10_k": {"img_count": null}}'),
        ("ss_training_started_at", "inf"),
        ("ss_training_started_at", "1e30"),
        ("ss_epoch", "\u00b2"),
        ("ss_epoch", "9" * 26),
        ("ss_num_epochs", "9" * 5000),
        ("ss_learning_rate", "NaN"),
        ("ss_learning_rate", "9" * 400),
        ("ss_network_dim", "Infinity"),
        ("ss_resolution", "(,)"),
    ],
)
def test_odd_metadata_costs_its_own_value_alone(tmp_path: Path, name: str, value: str) -> None:
    runs, _ = imported(lora(tmp_path / "a.safetensors", ss_keep_tokens="2", **{name: value}))
    assert runs[0].run.all_parameters["keep_tokens"] == 2
    assert runs[0].run.all_parameters["network_dim"] == 2


def test_a_count_of_pictures_may_be_written_as_a_fraction(tmp_path: Path) -> None:
    runs, _ = imported(lora(tmp_path / "a.safetensors", ss_dataset_dirs='{"10_k": {"img_count": "12.0"}}'))
    assert runs[0].run.num_images == 12


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_files_of_any_precision_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    weights = {UP: torch.ones(4, 2).to(kind), DOWN: torch.ones(2, 4).to(kind), "lora_unet_a.alpha": torch.tensor(3)}
    runs, _ = imported(lora(tmp_path / "a.safetensors", weights))
    assert runs[0].run.all_parameters["network_alpha"] == 3
    assert str(runs[0].run.outcome) != "diverged"


@pytest.mark.parametrize("kind", [torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "name",
    [
        UP,
        DOWN,
        "lora_unet_a.alpha",
        "lora_unet_a.hada_w1_a",
        "lora_unet_a.lokr_w2",
        "base_model.model.a.lora_B.weight",
        "lora_unet_a.dora_scale",
    ],
)
def test_weights_that_are_no_numbers_are_seen_in_every_tensor(tmp_path: Path, name: str, kind: torch.dtype) -> None:
    weights = {UP: torch.ones(4, 2), DOWN: torch.ones(2, 4), name: torch.full((2, 4), torch.nan).to(kind)}
    runs, _ = imported(lora(tmp_path / "a.safetensors", weights))
    assert str(runs[0].run.outcome) == "diverged"


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**31, 10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "None", "NaN", "1e400", "inf", "\u00b2", "2026-11-28", "[]", "{}", "9" * 30, "a=b"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
METADATA = (
    "ss_network_args", "ss_datasets", "ss_dataset_dirs", "ss_training_started_at", "ss_training_finished_at",
    "ss_epoch", "ss_num_epochs", "ss_optimizer", "ss_learning_rate", "ss_network_dim", "ss_resolution",
    "ss_sd_model_name", "ss_base_model_version", "ss_output_name", "ss_session_id", "ss_keep_tokens",
    "ss_max_train_steps",
)  # fmt: skip
COLUMNS = (
    "run_name", "epoch", "epoch_number", "visual", "style", "prompt", "quality", "quality_score", "notes", "words",
    "base_model", "dataset", "model_type", "num_images", "best_epoch", "network_dim", "learning_rate", "resolution",
    "network_args", "optimizer_args", "shuffle_caption", "keep_tokens",
)  # fmt: skip
FORM = (
    "LoRA_type", "pretrained_model_name_or_path", "epoch", "lr_warmup", "network_dim", "max_resolution", "unet_lr",
    "output_name", "train_data_dir", "optimizer_args", "sdxl", "dataset_repeats",
)  # fmt: skip
CONFIG = (
    "datasets", "general", "dataset_config", "output_name", "network_args", "optimizer_args", "resolution",
    "learning_rate", "train_data_dir", "campaign", "prompts", "subsets",
)  # fmt: skip
rows = st.lists(st.dictionaries(st.sampled_from(COLUMNS), values, max_size=8), max_size=3)
forms = st.dictionaries(st.sampled_from(FORM), values).map(lambda form: {**dict.fromkeys(FORM[:2], ""), **form})
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def no_traceback(path: Path, write: Callable[[Path], object]) -> None:
    """Import a file: it counts, or it is a sentence."""
    write(path)
    with contextlib.suppress(ConfigError):
        imported(path)


@fuzzed
@given(st.dictionaries(st.sampled_from(METADATA), values, max_size=8))
def test_metadata_of_any_type_breaks_nothing(tmp_path: Path, metadata: dict[str, Any]) -> None:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    data = header(json.dumps({"__metadata__": texts}).encode())
    no_traceback(tmp_path / "a.safetensors", lambda path: path.write_bytes(data))


@fuzzed
@given(values)
def test_a_header_of_any_shape_breaks_nothing(tmp_path: Path, content: Any) -> None:
    text = json.dumps({"__metadata__": content, UP: content}).encode()
    no_traceback(tmp_path / "a.safetensors", lambda path: path.write_bytes(header(text, bytes(8))))


@fuzzed
@given(rows | values | forms)
def test_json_of_any_type_breaks_nothing(tmp_path: Path, document: Any) -> None:
    no_traceback(tmp_path / "a.json", lambda path: path.write_text(json.dumps(document)))


@fuzzed
@given(rows | values | st.dictionaries(scalars | st.dates(), values | st.dates() | st.datetimes(), max_size=4))
def test_yaml_of_any_type_breaks_nothing(tmp_path: Path, document: Any) -> None:
    text = yaml.safe_dump(document)
    no_traceback(tmp_path / "a.yaml", lambda path: path.write_text(text, encoding="utf-8", errors="replace"))


@fuzzed
@given(rows)
def test_csv_of_any_type_breaks_nothing(tmp_path: Path, table: list[dict[str, Any]]) -> None:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)

    no_traceback(tmp_path / "a.csv", write)


def tomlable(value: Any) -> Any:
    """A value without what TOML does not know: null."""
    if isinstance(value, dict):
        return {k: tomlable(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [tomlable(v) for v in value if v is not None]
    return value


@fuzzed
@given(st.dictionaries(st.sampled_from(CONFIG), values.filter(lambda v: v is not None), max_size=6))
def test_toml_of_any_type_breaks_nothing(tmp_path: Path, document: dict[str, Any]) -> None:
    text = tomlkit.dumps(tomlable(document))
    no_traceback(tmp_path / "a.toml", lambda path: path.write_text(text, encoding="utf-8", errors="replace"))


def test_parts_of_a_base_model_are_no_runs(tiny_model: Path) -> None:
    parts = sorted(tiny_model.rglob("*.safetensors"))
    assert len(parts) >= 3
    for part in parts:
        with pytest.raises(ConfigError, match="weights of a model, not of a LoRA"):
            read_lora(part)
