"""Real parts that several tests share: a Postgres server, and a base model that fits in a second."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate

# A shell that starts the tests in the background has switched Ctrl-C off, for the programs that they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)


_PARTS = {"postgres", "postgres_url", "empty_url", "template", "small_disk", "tiny_model", "tiny_sdxl"}
"""Fixtures that start a process, mount a disk or build a model."""
_SIGNS = re.compile(r"\b(subprocess|TrainerProcess|WarmTrainer|EmbeddedPostgres|chromium|multiprocessing|os\.fork)\b")
"""What modules name whose tests start processes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="run only tests that need no process, database or model")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    started = [item for item in items if _needs_parts(item)]
    config.hook.pytest_deselected(items=started)
    items[:] = [item for item in items if item not in set(started)]


def _needs_parts(item: pytest.Item) -> bool:
    if _PARTS & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("e2e") is not None:
        return True
    return item.path.name != "test_layers.py" and bool(_SIGNS.search(_source(item.path)))


@functools.cache
def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --quick, fail a test that starts a process or connects to a database: it would slow the inner loop."""
    if request.config.getoption("--quick"):

        def refuse(*_: object, **__: object) -> None:
            pytest.fail("a quick test may not start a process or connect to a database: see tests/conftest.py")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(psycopg, "connect", refuse)


def remove(server: EmbeddedPostgres) -> None:
    """Stop a server and delete its data: as root it lies in a system folder that outlives the test's own."""
    server.stop()
    if (server.root / "state.json").exists():
        data = server.root / json.loads((server.root / "state.json").read_text())["data"]
        shutil.rmtree(data.parent, ignore_errors=True)  # the server may still be removing files of its own


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A running server of this test session's own."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    remove(server)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """Name of a migrated database to copy."""
    migrate(postgres.ensure_database("template_pixelloop"))
    return "template_pixelloop"


@pytest.fixture
def postgres_url(postgres: EmbeddedPostgres, template: str) -> str:
    """A migrated, empty database for one test."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"create database {name} template {template}".encode())
    return postgres.url(name)


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> str:
    """An empty database without any tables."""
    return postgres.ensure_database(f"empty_{uuid.uuid4().hex[:12]}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which `mount -o remount,size=` makes larger."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder of the ordinary classes with a few thousand random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2, sample_size=16,
        layers_per_block=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL folder of the ordinary classes with a few thousand random weights."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=16, bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, cross_attention_dim=32, norm_num_groups=4,
        attention_head_dim=(1, 2), use_linear_projection=True, transformer_layers_per_block=(1, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 16,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(tiny_model / "vae"), unet=unet, scheduler=EulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, add_watermarker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    pipe.save_pretrained(folder)
    return folder
