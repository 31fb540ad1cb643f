from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from schema.errors import ConfigError
from tasks import gpus
from tasks.claims import Claim

HOLDER = """
import sys, time
from pathlib import Path
from tasks.claims import Claim
assert Claim.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_claim_is_one_process_alone_and_ends_with_it(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "claim"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert Claim.take(place) is None
    assert not Claim.is_free(place)
    holder.kill()
    holder.wait()
    assert Claim.is_free(place)
    holder.stdout.close()
    mine = Claim.take(place)
    assert mine is not None
    assert Claim.take(place) is None
    mine.release()
    mine.release()
    with Claim.take(place) or pytest.fail("not free"):
        pass


def test_many_may_share_a_claim_that_nobody_has_alone(tmp_path: Path) -> None:
    place = tmp_path / "claim"
    first, second = (Claim.take(place, shared=True) or pytest.fail("not shared") for _ in range(2))
    assert Claim.take(place) is None
    first.release()
    assert Claim.take(place) is None
    second.release()
    with Claim.take(place) or pytest.fail("not free"):
        assert Claim.take(place, shared=True) is None


def test_each_process_gets_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "2, GPU-5a1,")
    names = gpus.visible()
    assert names == ["2", "GPU-5a1"]
    first, second = gpus.take(names, tmp_path), gpus.take(names, tmp_path)
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == ("2", "GPU-5a1")
    assert gpus.take(names, tmp_path) is None
    first[1].release()
    again = gpus.take(names, tmp_path)
    assert again is not None
    assert again[0] == "2"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1", "mps", "gpu", "cuda:x"])
def test_a_device_that_is_not_here_is_one_sentence(wanted: str) -> None:
    with pytest.raises(ConfigError, match="PIXELLOOP_DEVICE"):
        gpus.pick_device(wanted)
    assert gpus.pick_device("cpu") == "cpu"


def test_asking_for_a_claim_makes_nothing(tmp_path: Path) -> None:
    assert Claim.is_free(tmp_path / "deep" / "claim")
    assert not (tmp_path / "deep").exists()
