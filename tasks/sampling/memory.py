"""How many pictures are drawn at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

_ON_CPU = 16
_PIXELS_ON_CPU = 16 * 128 * 128
_PROBE = 2
_SHARE = 0.5  # of the free memory: the trainer beside may grow


class Memory(Protocol):
    """Memory of a device, in bytes."""

    def free(self) -> int:
        """What can be taken now."""

    def start(self) -> None:
        """Begin to watch the peak."""

    def peak(self) -> int:
        """The most that was in use since `start`, beyond what was then."""


class CudaMemory:
    """Memory of a GPU; what this process holds in reserve counts as free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def free(self) -> int:
        """Bytes that can be taken now."""
        reserve = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0] + reserve)

    def start(self) -> None:
        """Begin to watch the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        """Bytes in use at most since `start`, beyond what was in use then."""
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before


class BatchSizes:
    """As many pictures as half of the free memory holds, by what those drawn before took.

    Learnt for each size of picture: first two are drawn and their memory watched; a batch that was too large
    nevertheless is halved, and no later one is larger. Without a `memory` to watch, as on a CPU, the size is
    fixed: 16 small pictures, one of 512 x 512, as larger batches there only need more memory.
    """

    def __init__(self, memory: Memory | None) -> None:
        self._memory = memory
        self._seen: dict[int, tuple[int, float]] = {}  # largest batch, and bytes of each picture in it, by pixels
        self._most: dict[int, int] = {}

    def of(self, pixels: int, left: int) -> int:
        """How many of the pictures left to draw now, each of so many pixels: at least 1."""
        most = self._most.get(pixels, left)
        if self._memory is None:
            fits = min(_ON_CPU, _PIXELS_ON_CPU // pixels)
        elif pixels in self._seen:
            fits = int(_SHARE * self._memory.free() / self._seen[pixels][1])
        else:
            fits = _PROBE
        return max(1, min(left, most, fits))

    @contextmanager
    def watch(self, pixels: int, count: int) -> Iterator[None]:
        """Draw a batch inside: what it takes is learnt; a batch that is too large raises what it raises."""
        if self._memory is not None:
            self._memory.start()
        yield
        # A small batch says little: what is taken once, to decode, is shared by few.
        if self._memory is not None and count >= self._seen.get(pixels, (0, 0.0))[0]:
            self._seen[pixels] = count, max(1.0, self._memory.peak() / count)

    def halve(self, pixels: int, count: int) -> None:
        """That many were too many."""
        self._most[pixels] = max(1, count // 2)
        if pixels in self._seen:
            self._seen[pixels] = 0, self._seen[pixels][1]  # what was learnt no longer holds: any batch may correct it
