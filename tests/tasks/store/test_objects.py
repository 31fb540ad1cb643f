from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from schema.runs import EpochResult, TrainingRun
from tasks.home import Home
from tasks.store.artifacts import settle, superfluous
from tasks.store.bucket import BucketObjects
from tasks.store.memory import MemoryStore
from tasks.store.objects import LocalObjects, ObjectStore
from tests.tasks.store.postgrest import PUBLISHABLE_KEY, SECRET_KEY, free_port, served
from tests.tasks.store.storage import LARGEST, storage
from tests.tasks.store.store_contract import make_epoch, make_run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with storage(tmp_path_factory.mktemp("storage")) as url:
        yield url


def bucket(url: str, key: str = SECRET_KEY, name: str = "loras") -> BucketObjects:
    return BucketObjects(url, SecretStr(key), name)


@pytest.fixture(params=["local", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalObjects(tmp_path / "kept")
    return bucket(request.getfixturevalue("project"))


def test_a_file_comes_back_as_it_was(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\xff" * 1000)
    for _ in range(2):
        objects.put("runs/night/a.safetensors", tmp_path / "a")
    objects.get("runs/night/a.safetensors", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    for _ in range(2):
        objects.delete("runs/night/a.safetensors")
    with pytest.raises(NotFoundError):
        objects.get("runs/night/a.safetensors", tmp_path / "c")


@pytest.mark.parametrize(
    ("key", "name", "size", "sentence"),
    [
        (SECRET_KEY, "loras", LARGEST + 1, "refused this"),
        ("sb_secret_other", "loras", 1, "refused this"),
        (PUBLISHABLE_KEY, "loras", 1, "refused this"),
        (SECRET_KEY, "lorras", 1, "has no bucket lorras"),
    ],
)
def test_a_refusal_is_told_without_the_key(
    project: str, tmp_path: Path, key: str, name: str, size: int, sentence: str
) -> None:
    (tmp_path / "a").write_bytes(b"a" * size)
    with pytest.raises(StoreError, match=sentence) as told:
        bucket(project, key, name).put("a", tmp_path / "a")
    assert key not in "".join(traceback.format_exception(told.value))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_that_is_away_may_be_asked_later(tmp_path: Path, status: int) -> None:
    async def away(_: Request) -> Response:  # the real one cannot be made to answer this
        return JSONResponse({"statusCode": str(status), "error": "away", "message": "away"}, status)

    url = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "a").write_text("a")
    with served(Starlette(routes=[Route("/{path:path}", away, methods=["POST", "GET"])]), url):
        for work in (lambda: bucket(url).put("a", tmp_path / "a"), lambda: bucket(url).get("a", tmp_path / "b")):
            with pytest.raises(StoreUnavailableError, match="away") as told:
                work()
            assert SECRET_KEY not in "".join(traceback.format_exception(told.value))


def test_an_address_where_nobody_answers_is_an_outage() -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be reached") as told:
        bucket("http://127.0.0.1:9").delete("a")
    assert SECRET_KEY not in "".join(traceback.format_exception(told.value))


def ended(home: Home) -> tuple[MemoryStore, TrainingRun, list[EpochResult]]:
    """A run of five epochs with its files."""
    store, run, epochs = MemoryStore(), make_run(0), list[EpochResult]()
    folder = home.trial("night", 0)
    for epoch, quality in enumerate((50.0, 80.0, 80.0, 70.0, None), 1):
        file = folder.checkpoints / f"{epoch}.safetensors"
        for place in (file, folder.sheet(epoch), folder.samples(epoch) / "a.png", folder.samples(epoch) / "b.png"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"x" * epoch)
        made = make_epoch(run, epoch).changed(quality=quality)
        epochs.append(made.changed(checkpoint=home.relative(file), sample_sheet=home.relative(folder.sheet(epoch))))
    run = run.changed(quality=80.0, best_epoch=2, best_checkpoint=epochs[1].checkpoint, finished_at=run.started_at)
    store.save_run(run)
    for made in epochs:
        store.save_epoch(made)
    return store, run, epochs


def test_the_best_files_and_all_pictures_stay(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    store, run, epochs = ended(home)
    for removed in (3, 0):
        assert settle(store, LocalObjects(home.root), home, run, store.epochs(run.uid), 2) == removed
        files = sorted(p.name for p in home.trial("night", 0).checkpoints.iterdir())
        assert files == ["2.safetensors", "3.safetensors"]
    assert len(list(tmp_path.rglob("*.png"))) == 15
    assert [e.checkpoint is None for e in store.epochs(run.uid)] == [True, False, False, True, True]
    rows = store.artifacts(run.uid)
    assert [(a.epoch_number, a.bytes) for a in rows if a.kind == "checkpoint"] == [(2, 2), (3, 3)]
    assert len([a for a in rows if a.kind == "sample"]) == 10
    assert len([a for a in rows if a.kind == "sheet"]) == 5
    assert superfluous(run, epochs, None) == []


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5])
def test_the_best_is_never_removed(tmp_path: Path, keep: int) -> None:
    _, run, epochs = ended(Home.at(tmp_path))
    last = run.changed(best_checkpoint=epochs[4].checkpoint)  # whatever it was judged by
    assert epochs[4] not in superfluous(last, epochs, keep)
    assert epochs[1] not in superfluous(run, epochs, keep)


def test_files_go_into_the_bucket_as_well(tmp_path: Path, project: str) -> None:
    home = Home.at(tmp_path)
    store, run, epochs = ended(home)
    objects = bucket(project)
    settle(store, objects, home, run, epochs, 1)
    rows = store.artifacts(run.uid)
    assert len(rows) == 1 + 15
    assert {row.storage for row in rows} == {"loras"}
    for row in rows:
        objects.get(row.path, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == home.absolute(row.path).read_bytes()


@pytest.mark.parametrize("place", ["{out}/precious", "../out/precious", "home.json", "runs/night/001/checkpoints/1"])
def test_only_files_of_the_run_itself_are_removed_or_kept(tmp_path: Path, place: str) -> None:
    """A row that came with `db import` may name any path."""
    home = Home.at(tmp_path / "home")
    store, run, epochs = ended(home)
    (tmp_path / "out").mkdir()
    precious = home.absolute(place.format(out=tmp_path / "out"))
    precious.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("precious")
    store.save_epoch(epochs[0].changed(checkpoint=place.format(out=tmp_path / "out"), quality=None))
    with pytest.raises(StoreError, match="lies outside"):
        settle(store, LocalObjects(home.root), home, run, store.epochs(run.uid), 2)
    assert precious.read_text() == "precious"
    if "out" in place:
        with pytest.raises(StoreError, match="lies outside"):
            settle(store, LocalObjects(home.root), home, run, store.epochs(run.uid), None)
        assert not [a for a in store.artifacts(run.uid) if "precious" in a.path]


def test_no_key_leads_out_of_a_bucket(tmp_path: Path) -> None:
    bucket = BucketObjects("http://127.0.0.1:9", SecretStr("key"), "loras")
    for key in ("../other/a", "runs/../../other/a"):
        with pytest.raises(StoreError, match="leads out of the bucket"):
            bucket.put(key, tmp_path / "a")
