"""Whatever a file holds, reading it gives data or one sentence."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schema.campaign import load_campaign
from schema.errors import ConfigError
from schema.prompts import load_prompts
from schema.readers import check_plain, read_bytes, read_json, read_text, read_toml
from tests.refusals import LONGEST_MESSAGE, refusal_of

CAMPAIGN = """
rules = ["network_dim <= 32"]
[campaign]
name = "night"
base_model = "base"
dataset = "portraits"
seed = 3
parallel = 1
[search]
learning_rate = { low = 1e-5, high = 1e-3, log = true }
"network_alpha/network_dim" = { choices = [0.5, 1.0] }
network_dim = { choices = [4, 8] }
[fixed]
max_train_epochs = 10
lr_warmup_steps = 0.1
optimizer_args = "betas=0.9,0.99"
[[start]]
learning_rate = 1e-4
[budget]
trials = 10
hours = 3.5
until = 07:30:00
repeats = 2
[gate]
min_runs = 5
[stopping]
objectives = ["colour", "style"]
[effort]
few_prompts = 4
[retention]
best_checkpoints = 1
[notify]
on = ["end"]
"""
PROMPTS = """
sampler = "ddim"
steps = 20
seeds = [1, 2]
width = 512
height = 512
clip_skip = 1
guidance_scale = 7.0
[[prompts]]
name = "one"
text = "pixel art, green background (#22aa44), brown hair"
[prompts.expect]
background = ["#22aa44"]
"""
odd_values = st.one_of(
    st.sampled_from(
        [10**400, -(10**400), 2**63, 2**63 - 1, -1, 0, float("inf"), float("-inf"), float("nan"), 1e308, 5e-324]
    ),
    st.sampled_from(
        ["\0", "a\0b", "\x1b[31m", "", " ", "x" * 20_000, "../../etc/passwd", "/dev/zero", "ünï\u200b", "²"]
    ),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.lists(st.integers(), min_size=5_000, max_size=5_000).map(lambda _: list(range(5000))),
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(), max_size=2),
    st.just({}),
    st.just([]),
)


def places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in a document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(place for key, value in items for place in places(value, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A valid document with one to three values replaced, added or removed, as TOML."""
    document = tomllib.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([place for place in places(document) if place]))
        parent = document
        for key in way:
            parent = parent[key]
        deed = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if deed == "remove":
            del parent[last]
        elif deed == "add" and isinstance(parent, dict):
            parent[draw(st.text(min_size=1, max_size=300))] = draw(odd_values)
        else:
            parent[last] = draw(odd_values)
    try:
        return tomlkit.dumps(document)
    except (ValueError, TypeError):  # tomlkit does not write a lone surrogate or a mixed document
        return repr(document)


def held(path: Path, text: str, read: Any) -> None:
    """Check that reading gives an object or one short sentence."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refusal_of(lambda: read(path))


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@fuzz
@given(mutated(CAMPAIGN))
def test_any_campaign_is_read_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    def read(path: Path) -> None:
        file = load_campaign(path)
        for place in (file.base_model, file.dataset_dir, file.prompts_file, file.sd_scripts):
            assert place is None or place

    held(tmp_path_factory.getbasetemp() / "campaign.toml", text, read)


@fuzz
@given(mutated(PROMPTS))
def test_any_prompt_suite_is_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    held(tmp_path_factory.getbasetemp() / "prompts.toml", text, lambda path: load_prompts(path).prompts[0].expectation)


@fuzz
@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1"))))
def test_any_text_is_read_as_toml_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    held(tmp_path_factory.getbasetemp() / "any.toml", text, read_toml)


def test_the_documents_that_are_mutated_are_valid(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text(CAMPAIGN)
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    assert load_campaign(tmp_path / "campaign.toml").budget.repeats == 2
    assert load_prompts(tmp_path / "prompts.toml").seeds == (1, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('dataset = "portraits"', 'dataset = "por\\u0000traits"'), "campaign.dataset holds the control character U"),
        (("lr_warmup_steps = 0.1", f"lr_warmup_steps = {10**400}"), "fixed.lr_warmup_steps is too large a number"),
        (("lr_warmup_steps = 0.1", "lr_warmup_steps = nan"), "fixed.lr_warmup_steps must be a finite number"),
        (("parallel = 1", "parallel = 10000000"), "less than or equal to 256"),
        (("trials = 10", "trials = 9223372036854775807"), "budget.trials: Input should be less than or equal to"),
        (("repeats = 2", "repeats = 5000"), "less than or equal to 100"),
        (("seed = 3", "seed = 4294967296"), "campaign.seed: Input should be less than or equal to"),
        (('name = "night"', f'name = "{"n" * 5000}"'), "campaign.name is longer than 4096 characters"),
        (("[gate]", f"[{'g' * 300}]"), "the key 'ggg.* is longer than 200 characters"),
        (("[gate]", f"x = {'[' * 50_000}{']' * 50_000}\n[gate]"), "nested too deeply"),
        (("trials = 10", f"trials = {'9' * 5000}"), "is not valid TOML"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    path = tmp_path / "campaign.toml"
    path.write_text(CAMPAIGN.replace(*change))
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_campaign(path)
    assert len(str(caught.value)) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("width = 512", "width = 1000000000000000000000000000000000000000"), "is not valid TOML|too large a number"),
        (("width = 512", "width = 65536"), "less than or equal to 4096"),
        (("clip_skip = 1", "clip_skip = 1000"), "less than or equal to 24"),
        (("seeds = [1, 2]", "seeds = [-1]"), "greater than or equal to 0"),
        (('name = "one"', 'name = "o\\u0000ne"'), r"prompts\[0\].name holds the control character U\+0000"),
    ],
)
def test_a_suite_that_cannot_be_drawn_is_refused(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(PROMPTS.replace(*change))
    with pytest.raises(ConfigError, match=sentence):
        load_prompts(path)


@pytest.mark.parametrize("read", [read_bytes, read_text, read_toml, read_json])
def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, sentence in (("pipe", "not a regular file"), ("zero", "not a regular file"), (".", "is a folder")):
        with pytest.raises(ConfigError, match=sentence):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match="does not exist"):
        read(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot be used"):
        read(tmp_path / "a\0b")
    with pytest.raises(ConfigError, match=r"name too long"):
        read(tmp_path / ("n" * 5000))


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "campaign.toml"
    path.write_bytes(b"\xef\xbb\xbf" + CAMPAIGN.encode())
    assert load_campaign(path).campaign.name == "night"
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="not UTF-8 text: save it as UTF-8"):
        read_text(path)


def test_a_large_file_is_refused_without_reading_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: takes no disk
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        read_toml(path)


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "[" * 200_000, "{", "9" * 5000])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid JSON"):
        read_json(path)


def test_a_lone_surrogate_from_json_is_refused() -> None:
    with pytest.raises(ConfigError, match="half a character"):
        check_plain({"name": "\ud800"}, "evidence.json")
