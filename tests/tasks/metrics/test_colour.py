from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.colour import UNIT, accuracy, ciede2000, difference, distance, hex_bytes, hex_code, oklab

SHARMA = [  # pairs and differences published with the formula's implementation notes
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, -0.001, 2.49), (50.0, 0.0009, -2.49), 4.8045),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_ciede2000_agrees_with_the_published_pairs(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    assert ciede2000(torch.tensor(first), torch.tensor(second)).item() == pytest.approx(expected, abs=1e-4)


def test_oklab_of_grey_has_no_hue_and_white_is_one() -> None:
    grey = oklab(torch.arange(256, dtype=torch.uint8).expand(1, 3, 256))
    assert not grey[:, 1:].any()
    assert grey[0, 0, 0] == 0
    assert grey[0, 0, -1] == pytest.approx(UNIT, abs=1)


@pytest.mark.parametrize(
    ("code", "lab"),
    [  # Ottosson's reference values of the corners of sRGB
        ("#ff0000", (0.62796, 0.22486, 0.12585)), ("#00ff00", (0.86644, -0.23389, 0.17950)),
        ("#0000ff", (0.45201, -0.03246, -0.31153)),
    ],
)  # fmt: skip
def test_oklab_agrees_with_the_reference(code: str, lab: tuple[float, float, float]) -> None:
    found = oklab(hex_bytes([code])) / UNIT
    assert found[0].tolist() == pytest.approx(lab, abs=0.002)


@given(st.lists(st.integers(0, 255), min_size=6, max_size=6))
def test_forgiven_lightness_brings_colours_nearer_and_never_apart(values: list[int]) -> None:
    first, second = oklab(torch.tensor(values, dtype=torch.uint8).view(2, 3)).split(1)
    assert distance(first, second) == distance(second, first)
    assert distance(first, second, 0.5) <= distance(first, second)


def test_hex_codes_survive_the_round_trip() -> None:
    codes = ["#22aa44", "#000000", "#ffffff"]
    assert [hex_code(c) for c in hex_bytes(codes)] == codes


def test_accuracy_is_full_within_a_just_noticeable_difference() -> None:
    assert accuracy(torch.tensor([0.0, 2.3])).tolist() == [100, 100]
    assert 55 < accuracy(torch.tensor(10.0)) < 65
    assert accuracy(torch.tensor(torch.inf)) == 0


def test_alike_colours_differ_little() -> None:
    red, near, blue = hex_bytes(["#c8323c", "#c9333d", "#2f6fd6"]) / 255
    assert difference(red, near) < 1
    assert difference(red, blue) > 30
