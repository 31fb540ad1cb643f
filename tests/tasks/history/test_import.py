from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from demo.workspace import lay_out
from schema.errors import ConfigError, PixelloopError, StoreUnavailableError
from schema.runs import Outcome
from tasks.history.database import read_postgres
from tasks.history.events import read_scalars
from tasks.history.facts import Fact, Source
from tasks.history.merge import Imported, assemble
from tasks.history.read import read_all
from tasks.store.base import Store
from tasks.store.memory import MemoryStore
from tasks.store.migrate import migrate
from tasks.store.postgres import PostgresStore
from tests.tasks.store.store_contract import make_epoch, make_run
from tests.tasks.store.test_migrate import USERS_TABLES, users_rows

NOW = datetime(2026, 11, 25, tzinfo=UTC)
START = 1795472243.25
SUBSET = {"img_count": 203, "num_repeats": 2, "shuffle_caption": True, "keep_tokens": 1, "is_reg": False}
DATASETS = [{"batch_size_per_device": 4, "resolution": [512, 512], "enable_bucket": True, "subsets": [SUBSET]}]
METADATA = {
    "ss_session_id": "188", "ss_output_name": "knights", "ss_network_dim": "8", "ss_network_alpha": "4",
    "ss_network_module": "networks.lora", "ss_learning_rate": "0.0001", "ss_unet_lr": "None", "ss_num_epochs": "3",
    "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9,0.99))", "ss_min_snr_gamma": "5",
    "ss_network_args": '{"conv_dim": "4"}', "ss_sd_model_name": "sd15.safetensors", "ss_base_model_version": "sd_v1",
    "ss_datasets": json.dumps(DATASETS), "ss_dataset_dirs": '{"2_sprites": {"n_repeats": 2, "img_count": 203}}',
    "ss_training_started_at": str(START), "ss_debiased_estimation": "False", "ss_clip_skip": "None",
}  # fmt: skip
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def lora(path: Path, rank: int = 8, bad: bool = False, **metadata: str) -> Path:
    tensors = {
        f"{KEY}.lora_down.weight": torch.ones(rank, 16, dtype=torch.float16),
        f"{KEY}.lora_up.weight": torch.full((16, rank), float("nan") if bad else 1.0, dtype=torch.float16),
        f"{KEY}.alpha": torch.tensor(4.0, dtype=torch.float16),
    }
    save_file(tensors, path, metadata)
    return path


def night(folder: Path) -> Path:
    """Three LoRA files of one run."""
    for epoch, name in ((1, "knights-000001"), (2, "knights-000002"), (3, "knights")):
        lora(
            folder / f"{name}.safetensors",
            **METADATA,
            ss_epoch=str(epoch),
            ss_training_finished_at=str(START + 60 * epoch),
        )
    return folder


def imported(store: Store, *places: Path | str, options: Sequence[Fact] = ()) -> tuple[list[Imported], list[str]]:
    found, unread = read_all([str(place) for place in places], None)
    runs, notes = assemble(found, store.history(), options, NOW)
    for run in runs:
        run.keep(store)
    return runs, [*unread, *notes]


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def record(tag: str, step: int, value: float, wall: float) -> bytes:
    """One record as TensorBoard writes it; checksums are not looked at."""
    inner = message(1, message(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
    event = b"\x09" + struct.pack("<d", wall) + b"\x10" + varint(step) + message(5, inner)
    return struct.pack("<Q", len(event)) + bytes(4) + event + bytes(4)


def test_files_of_one_run_become_one_run_with_its_epochs(tmp_path: Path) -> None:
    store = MemoryStore()
    (run,), notes = imported(store, night(tmp_path))
    assert not notes
    kept = run.run
    assert (kept.run_name, kept.campaign, kept.base_model, kept.dataset) == (
        "knights", "imported", "sd15.safetensors", "sprites",
    )  # fmt: skip
    expected = {
        "network_dim": 8, "network_alpha": 4.0, "conv_dim": 4, "learning_rate": 1e-4, "optimizer_type": "AdamW",
        "weight_decay": 0.1, "min_snr_gamma": 5.0, "max_train_epochs": 3, "train_batch_size": 4, "resolution": 512,
        "num_repeats": 2, "shuffle_caption": True, "keep_tokens": 1, "save_precision": "fp16",
        "network_train_unet_only": True, "debiased_estimation_loss": False,
    }  # fmt: skip
    assert expected.items() <= kept.all_parameters.items()
    assert "unet_lr" not in kept.all_parameters
    assert kept.num_images == 203
    assert kept.outcome is Outcome.OK
    assert [e.epoch_number for e in store.epochs(kept.uid)] == [1, 2, 3]
    assert kept.sources["network_dim"].startswith("metadata: knights")
    assert kept.sources["save_precision"].startswith("inferred: type of the tensors")
    assert set(kept.all_parameters) <= set(kept.sources)


def test_importing_twice_changes_nothing(tmp_path: Path, postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    (tmp_path / "scores.csv").write_text("run_name,epoch,visual,style,prompt,words\nknights,2,8,9,7,good\n")
    night(tmp_path)
    imported(store, tmp_path)
    before, ratings = store.history(), store.ratings(store.runs()[0].uid)
    found, _ = read_all([str(tmp_path)], None)
    runs, _ = assemble(found, store.history(), [], NOW)
    assert [run.keep(store) for run in runs] == ["unchanged"]
    assert store.history() == before
    assert store.ratings(store.runs()[0].uid) == ratings
    assert len(ratings) == 1
    (run,) = store.runs()
    assert (run.quality, run.best_epoch) == (80.0, 2)
    assert run.best_checkpoint is not None
    assert run.best_checkpoint.endswith("knights-000002.safetensors")
    with psycopg.connect(postgres_url) as connection:
        said = connection.execute("select visual_quality_score, observations from epoch_results where epoch_number = 2")
        assert said.fetchall() == [(8.0, "good")]
    store.close()


def test_scores_may_come_later_and_from_a_corrected_table(tmp_path: Path) -> None:
    store = MemoryStore()
    imported(store, night(tmp_path))
    table = tmp_path / "scores.yaml"
    for score in (4, 6):
        rows = [{"run": "knights", "epoch": 2, "visual": score}, {"run": "knights", "epoch": 1, "visual": 1}]
        table.write_text(yaml.safe_dump({"observations": rows}))
        imported(store, table)
    (run,) = store.runs()
    assert (run.quality, run.best_epoch, run.all_parameters["network_dim"]) == (60.0, 2, 8)


def test_two_sources_that_differ_are_both_shown(tmp_path: Path) -> None:
    lora(tmp_path / "knights.safetensors", rank=16, **METADATA, ss_epoch="3")
    (tmp_path / "train.toml").write_text('[a]\noutput_name = "knights"\nlearning_rate = 0.0002\nkeep_tokens = 1\n')
    (run,), _ = imported(MemoryStore(), tmp_path)
    told = sorted(c.sentence for c in run.conflicts)
    assert [c.name for c in sorted(run.conflicts, key=lambda c: c.name)] == ["learning_rate", "network_dim"]
    assert told[0] == (
        "knights: learning_rate is 0.0001 (metadata: knights.safetensors), "
        "but 0.0002 (config: train.toml); the first counts"
    )


def test_what_is_said_now_counts_before_everything(tmp_path: Path) -> None:
    said = [Fact("base_model", "/models/sd15", Source.OPTION, "command line")]
    (run,), _ = imported(MemoryStore(), night(tmp_path), options=said)
    assert run.run.base_model == "/models/sd15"
    assert run.run.sources["base_model"] == "stated now: command line"


def test_a_file_without_metadata_tells_what_its_tensors_tell(tmp_path: Path) -> None:
    (run,), _ = imported(MemoryStore(), lora(tmp_path / "old-000004.safetensors", rank=32))
    assert run.run.run_name == "old"
    assert (run.run.base_model, run.run.model_type) == ("unknown", "sd15")
    assert run.run.all_parameters["network_dim"] == 32
    assert run.run.all_parameters["network_alpha"] == 4.0
    assert all(told.startswith("inferred: ") for told in run.run.sources.values())
    assert [e.epoch_number for e in run.epochs] == [4]


def test_weights_that_are_no_numbers_are_a_run_that_diverged(tmp_path: Path) -> None:
    (run,), _ = imported(MemoryStore(), lora(tmp_path / "knights.safetensors", bad=True, **METADATA, ss_epoch="3"))
    assert run.run.outcome is Outcome.DIVERGED


def test_event_files_find_their_run_by_its_time(tmp_path: Path) -> None:
    night(tmp_path)
    logs = tmp_path / "20261123221730" / "network_train"
    logs.mkdir(parents=True)
    data = record("loss/current", 1, 0.5, START + 1)
    data += record("loss/epoch_average", 1, 0.25, START + 50) + record("loss/epoch_average", 300, 0.125, START + 100)
    (logs / "events.out.tfevents.1.host").write_bytes(data + data[:20])
    assert [(s.tag, s.step, s.value) for s in read_scalars(logs / "events.out.tfevents.1.host")] == [
        ("loss/current", 1, 0.5), ("loss/epoch_average", 1, 0.25), ("loss/epoch_average", 300, 0.125),
    ]  # fmt: skip
    store = MemoryStore()
    imported(store, tmp_path)
    assert store.epochs(store.runs()[0].uid)[0].train_loss == 0.25
    _, notes = imported(MemoryStore(), logs)
    assert "no run among the files was trained at its time" in notes[0]


def test_the_guis_form_is_read_with_its_habits(tmp_path: Path) -> None:
    form = {
        "LoRA_type": "Standard", "pretrained_model_name_or_path": "/models/sd15.safetensors", "network_dim": 64,
        "network_alpha": 32, "conv_dim": 1, "epoch": 10, "optimizer": "AdamW8bit", "max_resolution": "512,512",
        "unet_lr": 0, "learning_rate": 0.0003, "lr_warmup": 10, "output_name": "v7", "seed": "", "sdxl": False,
        "optimizer_args": "weight_decay=0.05", "train_data_dir": "/data/img", "shuffle_caption": True,
    }  # fmt: skip
    (tmp_path / "v7_20260501-213000.json").write_text(json.dumps(form))
    (run,), _ = imported(MemoryStore(), tmp_path)
    expected = {
        "network_dim": 64, "network_alpha": 32.0, "max_train_epochs": 10, "optimizer_type": "AdamW8bit",
        "resolution": 512, "lr_warmup_steps": 0.1, "weight_decay": 0.05, "network_module": "networks.lora",
    }  # fmt: skip
    assert expected.items() <= run.run.all_parameters.items()
    assert not {"unet_lr", "conv_dim", "seed"} & set(run.run.all_parameters)


def test_a_users_own_tables_are_taken_over_and_stay_as_they_are(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES.encode())
    migrate(empty_url)
    before, store = users_rows(empty_url), PostgresStore(empty_url)
    for _ in range(2):
        runs, notes = assemble(read_postgres(empty_url), store.history(), [], NOW)
        ends = [run.keep(store) for run in runs]
    assert ends == ["unchanged"] * 3
    assert not notes
    v7, v8, v9 = sorted(store.runs(), key=lambda r: r.run_name)
    assert (v7.quality, v7.best_epoch, v7.all_parameters["network_dim"]) == (40.0, 7, 64)
    assert v7.notes == 'photoreal faces; grün\n\U0001f451; photorealistic; wrong "background"'
    assert v8.sources["quality"] == "stated by hand: training_runs 2"
    assert (v9.quality, v9.outcome, v9.all_parameters) == (None, None, {})
    assert [r.words for r in store.ratings(v7.uid)] == [
        "background right for the first time; skip",
        "wrong again; fail",
    ]
    assert [table[:3] for table in users_rows(empty_url)] == before
    store.close()


def test_scores_of_a_run_of_our_own_change_nothing_that_was_measured(tmp_path: Path) -> None:
    store, run = MemoryStore(), make_run(0)
    store.save_run(run)
    store.save_epoch(make_epoch(run, 1))
    (tmp_path / "scores.json").write_text(json.dumps([{"run_name": "night-000", "epoch": 1, "visual": 1}]))
    imported(store, tmp_path)
    assert store.runs() == [run]
    assert store.epochs(run.uid) == [make_epoch(run, 1)]
    assert [r.visual for r in store.ratings(run.uid)] == [1.0]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "epoch,visual\n1,2\n", "row 1: it names no run"),
        ("a.csv", "run_name,epoch,visual\nx,1,11\n", "visual_quality_score must lie in 0-10"),
        ("a.csv", "run_name,epoch\nx,one\n", "epoch must be a number"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"a": 1}', "write a list of rows"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.toml", "x", "not valid TOML"),
        ("a.safetensors", "x", "no complete safetensors file"),
        ("a.txt", "x", "can be imported"),
        ("events.out.tfevents.1", "x" * 200, "nothing"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    if sentence == "nothing":  # a length beyond the end: a record that was torn
        assert list(read_scalars(tmp_path / name)) == []
        return
    with pytest.raises(ConfigError, match=sentence):
        read_all([str(tmp_path / name)], None)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_readers(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("events.out.tfevents.1", "a.safetensors", "a.csv", "a.json", "a.yaml", "a.toml"):
        (folder / name).write_bytes(data)
        with contextlib.suppress(PixelloopError):
            read_all([str(folder / name)], None)


def test_a_password_stands_in_no_error() -> None:
    with pytest.raises(StoreUnavailableError) as error:
        read_postgres("postgresql://user:topsecret@127.0.0.1:9/postgres")
    assert "topsecret" not in str(error.value)


def test_a_campaign_and_its_prompts_beside_old_files_are_no_runs(tmp_path: Path) -> None:
    lay_out(tmp_path / "demo")
    with pytest.raises(ConfigError, match=r"campaign.toml is a campaign, not the configuration of a run"):
        read_all([str(tmp_path / "demo" / "campaign.toml")], None)
    lora(tmp_path / "demo" / "old.safetensors")
    for part in (tmp_path / "demo" / "base").rglob("*.safetensors"):
        part.unlink()
    found, unread = read_all([str(tmp_path / "demo")], None)
    assert [one.run for one in found if one.run in ("campaign", "prompts")] == []
    assert "prompts.toml is a prompt suite" in "".join(unread)
