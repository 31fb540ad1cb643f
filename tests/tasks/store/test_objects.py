from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from tasks.store.memory import MemoryStore
from tasks.store.objects import LocalObjects, ObjectStore, SupabaseObjects
from tests.tasks.store.postgrest import SECRET_KEY, free_port, served
from tests.tasks.store.store_contract import make_epoch, make_run


@dataclass
class Bucket:
    """The four requests of Supabase's storage API that we make, after its documentation; not the real service."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200

    def app(self) -> Starlette:
        async def answer(request: Request) -> Response:
            if self.status != 200:
                return JSONResponse({"message": "no"}, self.status)
            if request.headers.get("authorization") != f"Bearer {SECRET_KEY}":
                return JSONResponse({"statusCode": "403", "message": "Invalid Compact JWS"}, 400)
            key = request.path_params["key"].removeprefix("authenticated/")
            if request.method == "POST":
                self.files[key] = await request.body()
                return JSONResponse({"Key": key})
            if request.method == "DELETE":
                gone = [self.files.pop(f"{key}/{name}", None) for name in (await request.json())["prefixes"]]
                return JSONResponse([{} for one in gone if one is not None])
            if key not in self.files:
                return JSONResponse({"statusCode": "404", "error": "not_found", "message": "Object not found"}, 400)
            return Response(self.files[key])

        return Starlette(routes=[Route("/storage/v1/object/{key:path}", answer, methods=["GET", "POST", "DELETE"])])


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    bucket = Bucket(f"http://127.0.0.1:{free_port()}")
    with served(bucket.app(), bucket.url):
        yield bucket


@pytest.fixture(params=["local", "supabase"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> ObjectStore:
    if request.param == "local":
        return LocalObjects(tmp_path / "kept")
    return SupabaseObjects(bucket.url, SecretStr(SECRET_KEY), "loras")


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
    ("status", "error"), [(503, StoreUnavailableError), (429, StoreUnavailableError), (413, StoreError)]
)
def test_trouble_is_told_without_the_key(bucket: Bucket, tmp_path: Path, status: int, error: type[Exception]) -> None:
    (tmp_path / "a").write_text("a")
    bucket.status = status
    try:
        with pytest.raises(error) as told:
            SupabaseObjects(bucket.url, SecretStr(SECRET_KEY), "loras").put("a", tmp_path / "a")
    finally:
        bucket.status = 200
    assert SECRET_KEY not in str(told.value)
    with pytest.raises(StoreUnavailableError) as told:
        SupabaseObjects("http://127.0.0.1:9", SecretStr(SECRET_KEY), "loras").delete("a")
    assert SECRET_KEY not in str(told.value)
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


def test_files_go_into_the_bucket_as_well(tmp_path: Path, bucket: Bucket) -> None:
    home = Home.at(tmp_path)
    store, run, epochs = ended(home)
    bucket.files.clear()
    settle(store, SupabaseObjects(bucket.url, SecretStr(SECRET_KEY), "loras"), home, run, epochs, 1)
    assert len(bucket.files) == 1 + 15
    assert "loras/runs/night/000/checkpoints/2.safetensors" in bucket.files
    assert {a.storage for a in store.artifacts(run.uid)} == {"loras"}
