from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from schema.errors import ConfigError
from tasks.dashboard.blind import BlindServer, PicturePair, open_blind
from tests.tasks.reports.page import Page

CAPTION = "<script>alert(1)</script> & a queen"


@pytest.fixture
def pairs(tmp_path: Path) -> list[PicturePair]:
    """Pairs of which the first picture is dark, the second light."""
    made = []
    for number in range(4):
        paths = [tmp_path / f"{number}-{kind}.png" for kind in ("a", "b")]
        for shade, path in zip((20, 220), paths, strict=True):
            Image.new("RGB", (8, 8), (shade, number, 0)).save(path)
        made.append(PicturePair(f"queen-s{number}", CAPTION, *paths))
    return made


Said = dict[str, str]


@pytest.fixture
def started(pairs: list[PicturePair]) -> Iterator[tuple[BlindServer, Said, threading.Thread]]:
    said: Said = {}
    with open_blind(pairs, said.__setitem__, seed=1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server, said, thread
        server.shutdown()
        thread.join()


@pytest.fixture
def client(started: tuple[BlindServer, Said, threading.Thread]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=started[0].url, timeout=30) as client:
        yield client


def form(page: str) -> dict[str, str]:
    return dict(re.findall(r'name="(token|number)" value="([^"]*)"', page))


def lighter(client: httpx.Client, page: str, tmp_path: Path) -> str:
    """The side with the lighter picture, as a person's eyes find it."""
    shades = {}
    for side in ("left", "right"):
        picture = client.get(f"/picture/{form(page)['number']}/{side}")
        assert picture.headers["content-type"] == "image/png"
        (tmp_path / "seen.png").write_bytes(picture.content)
        with Image.open(tmp_path / "seen.png") as image:
            shades[side] = image.getpixel((0, 0))[0]  # type: ignore[index]
    return max(shades, key=lambda side: shades[side])


def test_a_person_who_always_prefers_the_lighter_picture_prefers_the_second(
    started: tuple[BlindServer, Said, threading.Thread], client: httpx.Client, tmp_path: Path
) -> None:
    _, said, thread = started
    page, sides = client.get("/").text, []
    for _ in range(4):
        sides.append(lighter(client, page, tmp_path))
        page = client.post("/vote", data={**form(page), "choice": sides[-1]}).text
    assert said == {f"queen-s{n}": "second" for n in range(4)}
    assert set(sides) == {"left", "right"}  # the order is hidden
    assert "All pictures are judged" in page
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_tie_counts_and_a_repeated_vote_takes_the_place_of_the_first(
    started: tuple[BlindServer, Said, threading.Thread], client: httpx.Client
) -> None:
    page = client.get("/").text
    for choice in ("left", "tie", "tie"):
        client.post("/vote", data={**form(page), "choice": choice})
    assert list(started[1].values()) == ["tie"]
    assert "2 of 4" in client.get("/").text


def test_what_a_prompt_says_is_text(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(client.get("/").text, encoding="utf-8")
    page = Page(tmp_path / "page.html")
    assert CAPTION in page.text
    assert len(page.scripts) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [({"token": "guessed"}, 403), ({"token": "grün"}, 403), ({"choice": "up"}, 400), ({"number": "9"}, 400),
     ({"number": "-1"}, 400), ({"number": ""}, 400)],
)  # fmt: skip
def test_a_vote_from_elsewhere_or_of_nothing_is_refused(
    started: tuple[BlindServer, Said, threading.Thread], client: httpx.Client, change: Said, status: int
) -> None:
    sent = {**form(client.get("/").text), "choice": "left", **change}
    assert client.post("/vote", data=sent).status_code == status
    assert started[1] == {}


@pytest.mark.parametrize("path", ["/picture/9/left", "/picture/0/up", "/picture/../../etc/passwd", "/other"])
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_it_answers_to_its_own_address_on_this_machine_alone(
    started: tuple[BlindServer, Said, threading.Thread], client: httpx.Client
) -> None:
    assert started[0].server_address[0] == "127.0.0.1"
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy


def test_a_port_in_use_is_one_sentence(pairs: list[PicturePair]) -> None:
    keep: Callable[[str, str], None] = {}.__setitem__
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="is in use"):
        open_blind(pairs, keep, port=taken.getsockname()[1])
