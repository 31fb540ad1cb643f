"""A campaign's files are checked as a whole before anything is started."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.portraits import write_dataset
from flows.runtime.wiring import read_campaign
from tests.refusals import refusal_of

TEXT = """
rules = ["network_dim <= 32", "network_alpha <= network_dim"]
[campaign]
name = "night"
base_model = "model"
dataset = "portraits"
prompts = "prompts.toml"
trainer = "pixelloop"
sd_scripts = "scripts"
sd_scripts_python = "python"
[search]
learning_rate = { low = 1e-5, high = 1e-3, log = true }
network_dim = { choices = [4, 8] }
optimizer_type = { choices = ["AdamW", "Prodigy"] }
[fixed]
network_alpha = 4
max_train_epochs = 2
lr_warmup_steps = 10
resolution = 64
optimizer_args = "weight_decay=0.01"
network_args = "conv_dim=4"
caption_extension = ".txt"
block_dims = "4,4"
progressive_rank = "2:8"
[[start]]
learning_rate = 1e-4
"""

odd = st.one_of(
    st.sampled_from(
        [10**400, 2**63 - 1, -1, 0, 1e308, float("nan"), "", "\0", "/", "..", "x" * 3000, "a=b=c", "²:1", []]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.booleans(),
)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign's folder with everything but the campaign itself."""
    place = tmp_path_factory.mktemp("campaign")
    (place / "model").symlink_to(tiny_model)
    write_dataset(place / "portraits", 2, seed=0, size=64)
    (place / "prompts.toml").write_text('[[prompts]]\nname = "a"\ntext = "pixel art, green background"\n')
    return place


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, inner in items for place in leaves(inner, (*at, key))]
    return below or [at]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_campaign_is_accepted_or_refused_in_one_sentence(folder: Path, data: st.DataObject) -> None:
    document = tomllib.loads(TEXT)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(leaves(document)))
        parent: Any = document
        for key in way:
            parent = parent[key]
        parent[last] = data.draw(odd)
    path = folder / "campaign.toml"
    try:
        path.write_text(tomlkit.dumps(document), encoding="utf-8")
    except (ValueError, UnicodeError):
        return
    refusal_of(lambda: read_campaign(path))
