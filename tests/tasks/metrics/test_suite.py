"""What the measurements say of pictures whose truth is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demo.attributes import Attributes, distance, rgb
from demo.drawn import Colours, draw_characters
from demo.portraits import Portrait, portraits
from schema.prompts import Expectation, expectation_of
from schema.runs import PictureMetrics
from tasks.metrics.suite import measure, summarise

PORTRAITS = list(portraits(48, seed=77))
PROMISES = [expectation_of(p.caption) for p in PORTRAITS]


def pictures(size: int = 64, some: list[Portrait] = PORTRAITS) -> Tensor:
    return torch.tensor(np.stack([p.enlarged(size) for p in some])).permute(0, 3, 1, 2).float() / 255


def share(values: list[bool | None]) -> float:
    return sum(bool(v) for v in values) / len(values)


@pytest.fixture(scope="module")
def measured() -> list[PictureMetrics]:
    return measure(pictures(), PROMISES)


def test_real_pixel_art_in_the_promised_colours_scores_high(measured: list[PictureMetrics]) -> None:
    assert min(m.overall for m in measured) > 70
    assert np.mean([m.overall for m in measured]) > 95


def test_its_grid_background_and_hair_are_found(measured: list[PictureMetrics]) -> None:
    assert all(m.grid_scale == 4 for m in measured)
    for m, promised in zip(measured, PROMISES, strict=True):
        assert m.background_colour == promised.background[0]
    right = [m.hair_colour == p.hair[0] for m, p in zip(measured, PROMISES, strict=True)]
    assert share(right) >= 0.95


def test_crowns_are_found_where_they_are_and_nowhere_else(measured: list[PictureMetrics]) -> None:
    crowned = [m.crown_present for m, p in zip(measured, PORTRAITS, strict=True) if p.attributes.crown]
    assert share(crowned) >= 0.85
    bare = [i for i, p in enumerate(PORTRAITS) if p.attributes.crown is None]
    asked = [PROMISES[i].changed(crown=("#ffd700",)) for i in bare]
    assert share([m.crown_present for m in measure(pictures()[bare], asked)]) <= 0.05


def test_a_wrong_background_lowers_the_background_alone() -> None:
    promised = PROMISES[0].changed(background=("#00ff00",))
    right, wrong = measure(pictures()[[0, 0]], [PROMISES[0], promised])
    assert wrong.background_accuracy is not None
    assert wrong.background_accuracy < 20
    assert wrong.hair_accuracy == right.hair_accuracy
    assert wrong.overall < right.overall - 10


def test_two_hues_in_the_hair_are_flagged_and_shading_is_not(measured: list[PictureMetrics]) -> None:
    assert share([m.hair_two_tone for m in measured]) <= 0.05
    dyed, shaded = pictures(), pictures()
    for i, portrait in enumerate(PORTRAITS):
        hair = np.kron(portrait.hair, np.ones((4, 4), bool))
        half = torch.from_numpy(hair & (np.arange(64)[None] > 32))
        blue = portrait.attributes.hair.word in ("pink", "red", "blonde", "brown")
        dyed[i][:, half] = torch.tensor([0.15, 0.5, 0.95] if blue else [0.95, 0.2, 0.6])[:, None]
        shaded[i][:, half] *= 0.85
    two_hues = measure(dyed, PROMISES)
    assert share([m.hair_two_tone for m in two_hues]) >= 0.85
    higher = [(a.hair_two_tone_score or 0) > (b.hair_two_tone_score or 0) for a in two_hues for b in measured]
    assert share(higher) >= 0.93  # a missed tone ranks above none: campaigns learn from the score
    assert share([m.hair_two_tone for m in measure(shaded, PROMISES)]) <= 0.15


def test_smooth_pictures_have_no_grid_and_look_photorealistic() -> None:
    torch.manual_seed(0)
    rng = random.Random(1)
    characters = [Attributes.draw(rng) for _ in range(32)]
    smooth = draw_characters(Colours.of(characters, torch.device("cpu")), "portrait")
    found = measure(smooth, [expectation_of(", ".join(c.tags())) for c in characters])
    assert share([m.grid_scale is None for m in found]) >= 0.85
    assert share([m.is_photorealistic for m in found]) >= 0.95
    assert np.mean([m.overall for m in found]) < 55


def test_the_score_rises_with_every_step_from_smooth_to_sharp() -> None:
    sharp = pictures()
    blurred = torch.nn.functional.avg_pool2d(sharp, 5, 1, 2, count_include_pad=False)
    means = []
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = summarise(measure(weight * sharp + (1 - weight) * blurred, PROMISES)).mean
        assert found is not None
        means.append(found.overall)
    assert means == sorted(means)
    assert means[-1] - means[0] > 25


@pytest.mark.parametrize(("size", "scale"), [(512, 32.0), (400, 25.0), (341, 341 / 16)])
def test_grids_of_other_sizes_are_found_also_fractional_ones(size: int, scale: float) -> None:
    found = measure(pictures(size)[:8], PROMISES[:8])
    assert [m.grid_scale for m in found] == pytest.approx([scale] * 8, rel=0.02)


def test_neither_batch_nor_order_nor_threads_change_anything(measured: list[PictureMetrics]) -> None:
    order = list(reversed(range(len(PORTRAITS))))
    assert measure(pictures()[order], [PROMISES[i] for i in order]) == [measured[i] for i in order]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = [measure(pictures()[i : i + 1], PROMISES[i : i + 1])[0] for i in range(6)]
        shared_out = measure(pictures(), PROMISES)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert alone == measured[:6]
    assert shared_out == measured
    assert measure(pictures()[:0], []) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_the_same(measured: list[PictureMetrics]) -> None:
    assert measure(pictures().cuda(), PROMISES) == measured


def test_enlarging_leaves_palette_and_purity_alone() -> None:
    small, large = (measure(pictures(size)[:12], PROMISES[:12]) for size in (128, 512))
    assert [m.palette_size for m in small] == [m.palette_size for m in large]
    assert [m.pixel_art_purity for m in small] == pytest.approx([m.pixel_art_purity for m in large], abs=3)
    assert [m.hair_colour for m in small] == [m.hair_colour for m in large]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, len(PORTRAITS) - 1), st.sampled_from(["#2f55a8", "#b8303a", "#2f7d46", "#26262c"]))
def test_another_shirt_leaves_hair_and_background_alone(index: int, shirt: str) -> None:
    portrait, promise = PORTRAITS[index], PROMISES[index]
    if min(distance(shirt, c.code) for c in (portrait.attributes.background, portrait.attributes.hair)) < 100:
        return
    before = pictures()[index]
    dyed = before.clone()
    worn = torch.tensor(portrait.attributes.shirt.rgb) / 255
    dyed[:, (before - worn[:, None, None]).abs().amax(0) < 0.01] = torch.tensor(rgb(shirt))[:, None] / 255
    one, other = measure(torch.stack([before, dyed]), [promise, promise])
    assert one.background_accuracy == other.background_accuracy
    assert one.hair_accuracy == other.hair_accuracy


def test_a_gradient_and_a_pattern_are_backgrounds_too() -> None:
    portrait, promise = PORTRAITS[0], PROMISES[0]
    cells = portrait.pixels.copy()
    ground = (cells == portrait.attributes.background.rgb).all(-1)
    light = np.linspace(0.75, 1.1, 16)[:, None, None]
    gradient = np.where(ground[..., None], np.clip(cells * light, 0, 255), cells).astype(np.uint8)
    checks = (np.indices((16, 16)).sum(0) % 4 < 2)[..., None] & ground[..., None]
    pattern = np.where(checks, 255 - cells // 2, cells).astype(np.uint8)
    images = np.stack([np.kron(c, np.ones((8, 8, 1), np.uint8)) for c in (gradient, pattern)])
    for found in measure(torch.from_numpy(images).permute(0, 3, 1, 2), [promise, promise]):
        assert found.hair_colour == promise.hair[0]
        assert found.background_accuracy is not None
        assert found.background_accuracy > 40


def test_a_stained_background_is_bleeding() -> None:
    index = next(i for i, p in enumerate(PORTRAITS) if p.attributes.hair.word in ("red", "blue", "pink"))
    clean, stained = pictures()[index], pictures()[index].clone()
    stained[:, 4:36, :8] = torch.tensor(PORTRAITS[index].attributes.hair.rgb)[:, None, None] / 255
    before, after = measure(torch.stack([clean, stained]), [PROMISES[index]] * 2)
    assert before.colour_bleeding is not None
    assert after.colour_bleeding is not None
    assert before.colour_bleeding < 10
    assert after.hair_accuracy == before.hair_accuracy


def test_what_is_not_promised_is_not_scored() -> None:
    (found,) = measure(pictures()[:1], [Expectation()])
    assert found.background_accuracy is found.hair_accuracy is found.crown_accuracy is found.colour is None
    assert found.overall == found.style


def test_hair_that_is_not_there_has_no_figure_and_does_not_pay() -> None:
    cells = np.full((16, 16, 3), (40, 90, 200), np.uint8)
    cells[3:16, 4:12] = (224, 172, 138)  # a head without anything on it
    bald = torch.from_numpy(np.kron(cells, np.ones((8, 8, 1), np.uint8))).permute(2, 0, 1)[None]
    ground = ("#285ac8",)
    silent, promised = measure(bald.repeat(2, 1, 1, 1), [
        Expectation(background=ground), Expectation(background=ground, hair=("#603a14",)),
    ])  # fmt: skip
    assert promised.hair_colour is promised.hair_accuracy is promised.hair_two_tone is None
    assert promised.background_accuracy == silent.background_accuracy == 100
    assert silent.colour is not None
    assert promised.colour is not None
    assert promised.colour < silent.colour - 20


def test_vector_art_on_a_grid_is_no_pixel_art() -> None:
    rng = np.random.default_rng(4)
    layout = np.full((512, 512, 3), rng.integers(0, 256, 3), np.uint8)
    y, x = np.mgrid[0:512, 0:512]
    for number in range(24):
        top, left, height, width = (8 * int(v) for v in rng.integers((0, 0, 3, 3), (60, 60, 20, 20)))
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        if number % 3 == 0:
            inside = np.hypot((y - top - height / 2) / height, (x - left - width / 2) / width) < 0.5
        layout[inside] = rng.integers(0, 256, 3)
    (found,) = measure(torch.from_numpy(layout).permute(2, 0, 1)[None], [Expectation()])
    assert found.grid_scale == 8
    assert found.pixel_art_purity < 60


@pytest.mark.parametrize("size", [16, 32])
def test_a_striped_background_does_not_hide_the_grid(size: int) -> None:
    cells = np.full((32, 32, 3), (30, 60, 160), np.uint8)
    cells[np.arange(32) // 4 % 2 == 0] = (230, 200, 60)
    y, x = np.mgrid[0:32, 0:32]
    cells[np.hypot(x - 15, y - 18) < 9] = (200, 120, 90)
    image = torch.from_numpy(np.kron(cells, np.ones((size, size, 1), np.uint8))).permute(2, 0, 1)[None]
    assert measure(image, [Expectation()])[0].grid_scale == size


@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0, "noise"])
def test_empty_and_noisy_pictures_score_nothing(fill: float | str) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) if fill == "noise" else torch.full((1, 3, 64, 64), float(fill))
    (found,) = measure(image, PROMISES[:1])
    assert found.overall < 5


@settings(max_examples=25, deadline=None)
@given(st.integers(16, 80), st.integers(16, 80), st.integers(0, 10_000), st.sampled_from(["noise", "blocks", "ramp"]))
def test_any_picture_is_measured_within_the_ranges(height: int, width: int, seed: int, kind: str) -> None:
    torch.manual_seed(seed)
    if kind == "noise":
        image = torch.rand(1, 3, height, width)
    elif kind == "blocks":
        image = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5).round(), size=(height, width))
    else:
        image = torch.linspace(0, 1, width).expand(1, 3, height, width).clone()
    (found,) = measure(image, PROMISES[:1])
    for name in ("overall", "style", "edge_sharpness", "pixel_art_purity", "palette_score", "photorealism"):
        assert 0 <= getattr(found, name) <= 100.001
    assert 0 <= found.grid_confidence <= 1


def test_a_summary_means_what_is_there(measured: list[PictureMetrics]) -> None:
    summary = summarise(measured)
    assert summary.mean is not None
    crowned = [m.crown_accuracy for m in measured if m.crown_accuracy is not None]
    assert summary.mean.crown_accuracy == pytest.approx(np.mean(crowned))
    assert summary.worst == min(m.overall for m in measured)
    assert len(summary.pictures) == len(measured)
    assert summarise([]).mean is None
