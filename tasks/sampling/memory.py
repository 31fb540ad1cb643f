"""Decide how many pictures to draw at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

_PICTURES_ON_CPU = 16  # larger batches on a CPU are no faster, they only need more memory
_PIXELS_ON_CPU = 16 * 128 * 128  # of a batch: 16 small pictures, or one of 512 x 512
_PROBE_PICTURES = 2  # drawn first at a new size, to measure the memory each takes
_FREE_MEMORY_SHARE = 0.5  # of the free memory: the trainer on the same GPU may need more later


class Memory(Protocol):
    """Measure the memory of a device, in bytes."""

    def free(self) -> int:
        """Return the bytes that can be allocated now."""

    def start(self) -> None:
        """Start measuring the peak."""

    def peak(self) -> int:
        """Return the most bytes in use since `start`, minus those in use at `start`."""


class CudaMemory:
    """Measure the memory of a GPU; what torch holds in reserve counts as free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def free(self) -> int:
        """Return the bytes that can be allocated now."""
        reserve = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0] + reserve)

    def start(self) -> None:
        """Start measuring the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        """Return the most bytes in use since `start`, minus those in use at `start`."""
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before


class BatchSizes:
    """Choose batch sizes that fit into half of the free memory, from the memory that earlier batches took.

    This is learnt for each size of picture. The first batch has two pictures. A batch that does not fit is halved,
    and no later one is larger. Without a `memory`, as on a CPU, the batch size is fixed: 16 small pictures, or one
    of 512 x 512.
    """

    def __init__(self, memory: Memory | None) -> None:
        self._memory = memory
        self._learnt: dict[int, tuple[int, float]] = {}  # largest batch, and bytes of each picture in it, by pixels
        self._largest: dict[int, int] = {}

    def of(self, pixels: int, left: int) -> int:
        """Return how many of the `left` pictures to draw now, each of `pixels` pixels; at least 1."""
        most = self._largest.get(pixels, left)
        if self._memory is None:
            fits = min(_PICTURES_ON_CPU, _PIXELS_ON_CPU // pixels)
        elif pixels in self._learnt:
            fits = int(_FREE_MEMORY_SHARE * self._memory.free() / self._learnt[pixels][1])
        else:
            fits = _PROBE_PICTURES
        return max(1, min(left, most, fits))

    @contextmanager
    def watch(self, pixels: int, count: int) -> Iterator[None]:
        """Measure the memory of a batch drawn inside the block; errors of the batch pass through."""
        if self._memory is not None:
            self._memory.start()
        yield
        # A smaller batch overestimates: the fixed cost of decoding is divided by fewer pictures.
        if self._memory is not None and count >= self._learnt.get(pixels, (0, 0.0))[0]:
            self._learnt[pixels] = count, max(1.0, self._memory.peak() / count)

    def halve(self, pixels: int, count: int) -> None:
        """Record that a batch of `count` pictures did not fit."""
        self._largest[pixels] = max(1, count // 2)
        if pixels in self._learnt:
            # The estimate was too low: a count of 0 lets any later batch replace it.
            self._learnt[pixels] = 0, self._learnt[pixels][1]
