"""How fast pictures are measured, against NumPy and scikit-image doing the same one by one.

    python -m benchmarks.metrics_speed [--device cuda --bandwidth 4800] [--repeats 5] [--quick] [--json]

512 x 512 pixels, half PNG and half JPEG. Ours runs on two threads on a CPU, the peers as they come. Repeats of all
candidates are interleaved, so that a busy machine slows all of them, and medians are told.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import torch

from benchmarks.metrics import peer_numpy, peer_skimage
from benchmarks.metrics.pictures import SIDE, Pixels, store
from demo.portraits import portraits
from schema.prompts import Expectation, expectation_of
from tasks.metrics.suite import measure

BATCHES = (1, 16, 64)
THREADS = 2
_MIB = 2**20


@dataclass
class Candidate:
    """Something timed: `work` measures `pictures` pictures."""

    name: str
    pictures: int
    work: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: float = 0.0  # MiB above what was in use before

    def run(self, on_device: bool) -> None:
        """One timed repeat; a measurement ends with its figures on the host, so nothing is left to wait for."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.work()
        self.seconds.append((time.perf_counter() - wall) / self.pictures)
        self.cpu_seconds.append((time.process_time() - cpu) / self.pictures)
        if on_device:
            torch.cuda.synchronize()

    @property
    def rate(self) -> float:
        """Pictures per second, by the median repeat."""
        return 1 / median(self.seconds)

    @property
    def cpu(self) -> float:
        """Milliseconds of processor time per picture, over all threads."""
        return 1000 * median(self.cpu_seconds)


def report(device: str, bandwidth: float | None, quick: bool) -> dict[str, Any]:
    """Time everything, print it, and return what is told of it."""
    torch.set_num_threads(THREADS)
    candidates = candidates_on(device)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for candidate in candidates:
            candidate.peak = pool.submit(peak_memory, candidate.name, device).result()
    for candidate in candidates:
        candidate.work()  # builds tables and loads libraries
    for _ in range(_REPEATS[quick]):
        for candidate in candidates:
            candidate.run(device == "cuda")
    table = [row(candidate, candidates, bandwidth) for candidate in candidates]
    for line in table:
        print(
            "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else str(value) for name, value in line.items())
        )
    return table


def candidates_on(device: str) -> list[Candidate]:
    """Ours on a device, and the peers."""
    pixels, expectations = drawn(max(BATCHES))
    return [*ours(pixels, expectations, device), *peers(pixels, expectations)]


def drawn(count: int) -> tuple[list[Pixels], list[Expectation]]:
    """Portraits of 512 pixels with what their captions promise; every second one was a JPEG."""
    some = list(portraits(count, 0))
    pixels = [store(p.enlarged(SIDE), 90 if n % 2 else None) for n, p in enumerate(some)]
    return pixels, [expectation_of(p.caption) for p in some]


def ours(pixels: Sequence[Pixels], expectations: Sequence[Expectation], device: str) -> Iterator[Candidate]:
    """`measure` in batches; its pictures are already on the device, as a sampler leaves them."""
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(device).float() / 255
    for size in BATCHES:
        times = max(1, 4 // size)

        def work(size: int = size, times: int = times) -> None:
            for start in range(0, size * times, size):
                measure(images[start : start + size], expectations[start : start + size])

        yield Candidate(f"ours, batch {size}", size * times, work)


def peers(pixels: Sequence[Pixels], expectations: Sequence[Expectation]) -> Iterator[Candidate]:
    """One picture after another."""

    def each(one: Callable[[Pixels, Expectation], object], count: int) -> None:
        for picture, expectation in zip(pixels[:count], expectations[:count], strict=True):
            one(picture, expectation)

    yield Candidate("NumPy", 8, partial(each, peer_numpy.measure_one, 8))
    for palette in ("quantize", "k-means"):
        one = partial(peer_skimage.measure_one, palette=palette)
        yield Candidate(f"scikit-image, {palette}", 4, partial(each, one, 4))


def row(candidate: Candidate, others: Sequence[Candidate], bandwidth: float | None) -> dict[str, str | float]:
    """What is told of a candidate: its speed, and how many times that of each peer it is."""
    told: dict[str, str | float] = {
        "name": f"{candidate.name:24s}",
        "pictures/s": candidate.rate,
        "ms of CPU": candidate.cpu,
        "peak MiB": candidate.peak,
    }
    if candidate.name.startswith("ours"):
        for peer in (o for o in others if not o.name.startswith("ours")):
            told[f"x {peer.name}"] = candidate.rate / peer.rate
            told[f"x {peer.name} per CPU second"] = peer.cpu / candidate.cpu
        if bandwidth:
            touched = 3 * SIDE * SIDE * 4  # each picture is read once at least, as float32
            told["share of bandwidth"] = touched * candidate.rate / (bandwidth * 1e9)
    return told


def agreement() -> float:
    """Share of pictures on which ours and NumPy's find the same grid: the peer does the same work."""
    pixels, expectations = drawn(max(BATCHES))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    scales = [m.grid_scale for m in measure(images, expectations)]
    theirs = [peer_numpy.measure_one(p, e).scale for p, e in zip(pixels, expectations, strict=True)]
    same = [a == b or (a and b and abs(a / b - 1) < 0.02) for a, b in zip(scales, theirs, strict=True)]
    return sum(map(bool, same)) / len(same)


def peak_memory(name: str, device: str) -> float:
    """The most memory in use while a candidate works, in MiB above what was before: the device's, or the process's.

    Meant for a process of its own: memory that others have left behind would hide what it takes.
    """
    torch.set_num_threads(THREADS)
    candidate = next(c for c in candidates_on(device) if c.name == name)
    if device == "cuda" and name.startswith("ours"):
        before = torch.cuda.memory_allocated()
        candidate.work()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    process, done, seen = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        candidate.work()
    finally:
        done.set()
        watcher.join()
    return seen[0] / _MIB


if __name__ == "__main__":
    main()
