"""How fast pictures are measured, against NumPy and scikit-image doing it one by one.

512 x 512 pixels, half PNG and half JPEG. Ours runs on two threads on a CPU, the peers as they come. Repeats of all
candidates are interleaved, so that a busy machine slows all of them, and medians are told.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import torch

from benchmarks.metrics import peer_numpy, peer_skimage
from benchmarks.metrics.pictures import SIDE, Pixels, store
from benchmarks.scores import mean
from demo.portraits import portraits
from schema.prompts import Expectation, expectation_of
from schema.runs import PictureMetrics
from tasks.metrics.suite import measure

BATCHES = (1, 16, 64)
THREADS = 2

_STRAIGHT, _FRUGAL, _SKIMAGE = "NumPy", "NumPy, frugal", "scikit-image"
_REPEATS = (9, 5)
_MIB = 2**20
_TOLERANCE = 0.02
"""Of a figure's value, or 1 of a score, that two ways to measure may differ by."""


@dataclass
class Candidate:
    """Something timed: `work` measures `pictures` pictures."""

    name: str
    device: str
    pictures: int
    work: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: float = 0.0  # MiB above what was in use before

    def run(self) -> None:
        """One timed repeat; a measurement ends with its figures on the host, so nothing is left to wait for."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.work()
        self.seconds.append((time.perf_counter() - wall) / self.pictures)
        self.cpu_seconds.append((time.process_time() - cpu) / self.pictures)

    @property
    def rate(self) -> float:
        """Pictures per second, by the median repeat."""
        return 1 / median(self.seconds)

    @property
    def cpu(self) -> float:
        """Milliseconds of processor time per picture, over all threads."""
        return 1000 * median(self.cpu_seconds)


def report(bandwidth: float | None, quick: bool) -> dict[str, Any]:
    """Time everything on the CPU, and ours on a GPU where there is one; print it, and return what is told of it.

    Args:
        bandwidth: of the GPU's memory, GB/s, to tell how much of it is used.
        quick: fewer repeats.
    """
    candidates = every_candidate()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for candidate in candidates:
            candidate.peak = pool.submit(peak_memory, candidate.name, candidate.device).result()
    for candidate in candidates:
        candidate.work()  # builds tables and loads libraries
    for _ in range(_REPEATS[quick]):
        for candidate in candidates:
            candidate.run()
    peers = {c.name: c for c in candidates if c.name in (_STRAIGHT, _FRUGAL, _SKIMAGE)}
    told = {c.name: _row(c, peers, bandwidth) for c in candidates}
    for name, row in told.items():
        print(f"  {name:20s}" + "".join(f"  {key} {value:.4g}" for key, value in row.items()))
    agreed = {name: agreement(frugal) for name, frugal in ((_STRAIGHT, False), (_FRUGAL, True))}
    for name, share in agreed.items():
        print(f"  {name}: {share:.4f} of the figures are ours")
    return _keys(candidates, peers) | {"agreement": agreed, "speed": told}


def every_candidate() -> list[Candidate]:
    """Ours on every device there is, and the peers."""
    pixels, expectations = drawn(max(BATCHES))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    mine = [candidate for device in devices for candidate in ours(pixels, expectations, device)]
    return [*mine, *every_peer(pixels, expectations)]


def drawn(count: int) -> tuple[list[Pixels], list[Expectation]]:
    """Portraits of 512 pixels with what their captions promise; every second one was a JPEG."""
    some = list(portraits(count, 0))
    pixels = [store(p.enlarged(SIDE), 90 if n % 2 else None) for n, p in enumerate(some)]
    return pixels, [expectation_of(p.caption) for p in some]


def ours(pixels: Sequence[Pixels], expectations: Sequence[Expectation], device: str) -> Iterator[Candidate]:
    """`measure` in batches; its pictures are already on the device, as floats, as a sampler leaves them."""
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(device).float() / 255
    for size in BATCHES:
        times = max(1, 4 // size)

        def work(size: int = size, times: int = times) -> None:
            for start in range(0, size * times, size):
                measure(images[start : start + size], expectations[start : start + size])

        yield Candidate(f"ours, {device} x {size}", device, size * times, work)


def every_peer(pixels: Sequence[Pixels], expectations: Sequence[Expectation]) -> Iterator[Candidate]:
    """One picture after another."""

    def each(one: Callable[[Pixels, Expectation], object], count: int) -> None:
        for picture, expectation in zip(pixels[:count], expectations[:count], strict=True):
            one(picture, expectation)

    yield Candidate(_STRAIGHT, "cpu", 6, partial(each, peer_numpy.measure_one, 6))
    yield Candidate(_FRUGAL, "cpu", 12, partial(each, partial(peer_numpy.measure_one, frugal=True), 12))
    if importlib.util.find_spec("skimage"):
        yield Candidate(_SKIMAGE, "cpu", 4, partial(each, peer_skimage.measure_one, 4))
    else:
        print("  scikit-image is not installed: pip install -r benchmarks/requirements.txt")


def agreement(frugal: bool) -> float:
    """Share of all figures that the NumPy peer finds too: it does the same work."""
    pixels, expectations = drawn(max(BATCHES))
    mine = measure(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), expectations)
    theirs = [peer_numpy.measure_one(p, e, frugal) for p, e in zip(pixels, expectations, strict=True)]
    pairs = list(zip(mine, theirs, strict=True))
    return mean([_is_same(getattr(a, n), getattr(b, n)) for a, b in pairs for n in PictureMetrics.model_fields])


def peak_memory(name: str, device: str) -> float:
    """The most memory in use while a candidate works, in MiB above what was before: the device's, or the process's.

    Meant for a process of its own: memory that others have left behind would hide what it takes.
    """
    torch.set_num_threads(THREADS)
    candidate = next(c for c in every_candidate() if c.name == name)
    if device == "cuda":
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


def _row(candidate: Candidate, peers: dict[str, Candidate], bandwidth: float | None) -> dict[str, float]:
    """What is told of a candidate: its speed, and how many times that of each peer it is."""
    told = {"pictures/s": candidate.rate, "ms of CPU": candidate.cpu, "peak MiB": candidate.peak}
    if candidate.name not in peers:
        told |= {f"x {name}": candidate.rate / peer.rate for name, peer in peers.items()}
        if bandwidth and candidate.device == "cuda":
            touched = 3 * SIDE * SIDE * 4  # each picture's float32 values are there to be read once
            told["share of bandwidth"] = touched * candidate.rate / (bandwidth * 1e9)
    return told


def _keys(candidates: Sequence[Candidate], peers: dict[str, Candidate]) -> dict[str, float | None]:
    """The figures that count, of the batch that is fastest; None for what is not there."""
    fastest = {
        device: max((c.rate for c in candidates if c.device == device and c.name not in peers), default=None)
        for device in ("cpu", "cuda")
    }

    def times(device: str, peer: str) -> float | None:
        rate = fastest[device]
        return rate / peers[peer].rate if rate and peer in peers else None

    return {
        "speedup_cpu": times("cpu", _STRAIGHT),
        "speedup_cpu_frugal": times("cpu", _FRUGAL),
        "speedup_cpu_skimage": times("cpu", _SKIMAGE),
        "speedup_gpu": times("cuda", _STRAIGHT),
        "images_per_second": fastest["cpu"],
        "images_per_second_gpu": fastest["cuda"],
    }


def _is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_is_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, float) and isinstance(theirs, float):
        small = _TOLERANCE if abs(ours) <= 1 else 1.0
        return abs(ours - theirs) <= max(_TOLERANCE * abs(ours), small)
    return bool(ours == theirs)
