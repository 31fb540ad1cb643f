from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tasks.sampling.memory import BatchSizes

SMALL, LARGE = 64 * 64, 512 * 512


class Card:
    """A graphics card on which a model takes so much for every picture, and 10 for itself."""

    def __init__(self, free: int, a_picture: int) -> None:
        self.left, self.a_picture, self.drawing = free, a_picture, 0

    def free(self) -> int:
        return self.left

    def start(self) -> None:
        pass

    def peak(self) -> int:
        return 10 + self.drawing * self.a_picture


def drawn(card: Card, sizes: BatchSizes, pixels: int, left: int) -> Iterator[int]:
    while left:
        card.drawing = sizes.of(pixels, left)
        try:
            with sizes.watch(pixels, card.drawing):
                if card.peak() > card.left:
                    raise torch.OutOfMemoryError
        except torch.OutOfMemoryError:
            sizes.halve(pixels, card.drawing)
            continue
        left -= card.drawing
        yield card.drawing


def test_half_of_the_free_memory_is_used_once_two_pictures_have_shown_their_cost() -> None:
    card = Card(free=1000, a_picture=45)
    sizes = BatchSizes(card)
    assert list(drawn(card, sizes, LARGE, 30)) == [2, 10, 10, 8]
    assert list(drawn(card, sizes, LARGE, 10)) == [10]
    assert list(drawn(card, sizes, LARGE, 11)) == [10, 1]
    assert list(drawn(card, sizes, LARGE, 10)) == [10]  # not learnt from the single one


def test_each_size_of_picture_has_a_cost_of_its_own() -> None:
    card = Card(free=1000, a_picture=45)
    sizes = BatchSizes(card)
    list(drawn(card, sizes, LARGE, 30))
    assert next(drawn(card, sizes, SMALL, 30)) == 2


def test_a_trainer_that_took_memory_in_between_makes_batches_smaller() -> None:
    card = Card(free=1000, a_picture=45)
    sizes = BatchSizes(card)
    list(drawn(card, sizes, LARGE, 30))
    card.left = 300
    assert list(drawn(card, sizes, LARGE, 6)) == [3, 3]


def test_what_was_too_much_once_is_never_tried_again() -> None:
    card = Card(free=1000, a_picture=45)
    sizes = BatchSizes(card)
    list(drawn(card, sizes, LARGE, 30))
    card.a_picture = 150
    assert list(drawn(card, sizes, LARGE, 12)) == [5, 3, 3, 1]
    card.left = 10**6
    assert max(drawn(card, sizes, LARGE, 30)) == 5


@pytest.mark.parametrize(("side", "count"), [(64, 16), (128, 16), (256, 4), (512, 1), (1024, 1)])
def test_without_a_card_the_batch_is_fixed(side: int, count: int) -> None:
    assert BatchSizes(None).of(side * side, 100) == count
