"""A page with two pictures side by side, in hidden random order: a person says which is better.

It listens on 127.0.0.1 only, behind the same guard as optuna-dashboard. A vote needs the page's token as well, so that
other programs on the machine cannot vote by accident.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bottle

from tasks.dashboard.serve import DashboardServer, listen
from tasks.reports.html import environment

Choice = str
Save = Callable[[str, Choice], None]
_SIDES = ("left", "right")
_DIGITS = 9
"""Most digits of a picture's number: Python refuses to parse thousands of them."""


@dataclass(frozen=True)
class PicturePair:
    """The pictures of one prompt and seed.

    Attributes:
        name: of the files, without ending.
        caption: what was to be drawn; shown above both.
    """

    name: str
    caption: str
    first: Path
    second: Path


class BlindServer(DashboardServer):
    """Ends by itself after the answer to the last vote."""

    ballot: Ballot

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer; then look whether all is done."""
        super().process_request_thread(request, client_address)
        if self.ballot.next_number() is None:
            self.shutdown()


class Ballot:
    """The pairs in a shuffled order, with shuffled sides, and what was said of them so far."""

    def __init__(self, pairs: Sequence[PicturePair], save: Save, seed: int) -> None:
        """Args: save: is given a pair's name and ``first``, ``second`` or ``tie``; seed: of order and sides."""
        shuffled = random.Random(seed)
        self.pairs = shuffled.sample(list(pairs), len(pairs))
        self._flipped = [shuffled.random() < 0.5 for _ in pairs]
        self._save = save
        self._said: set[int] = set()

    def next_number(self) -> int | None:
        """Place of the first pair that nobody has judged; None at the end."""
        return next((n for n in range(len(self.pairs)) if n not in self._said), None)

    @property
    def done(self) -> int:
        """Pairs that were judged."""
        return len(self._said)

    def picture(self, number: int, side: str) -> Path:
        """The picture that is shown on a side."""
        pair = self.pairs[number]
        return pair.first if (side == "left") != self._flipped[number] else pair.second

    def vote(self, number: int, choice: str) -> None:
        """Take a choice: ``left``, ``right`` or ``tie``; a second one of the same pair takes the first's place."""
        told = "tie"
        if choice in _SIDES:
            told = "first" if (choice == "left") != self._flipped[number] else "second"
        self._save(self.pairs[number].name, told)
        self._said.add(number)


def open_blind(pairs: Sequence[PicturePair], save: Save, seed: int = 0, port: int = 0) -> BlindServer:
    """A server that listens but does not answer yet.

    Args:
        pairs: what is to be judged.
        save: see `Ballot`.
        seed: of the hidden order.
        port: on 127.0.0.1; 0 takes any free one.

    Raises:
        ConfigError: the port is in use, or may not be opened.
    """
    server = listen(BlindServer, "127.0.0.1", port, free_port=False)
    server.ballot = Ballot(pairs, save, seed)
    server.set_app(_application(server.ballot))
    return server


def serve_blind(
    pairs: Sequence[PicturePair], save: Save, ready: Callable[[str], None], seed: int = 0, port: int = 0
) -> None:
    """Show the page until the last pair is judged, or Ctrl-C; arguments and errors as `open_blind`.

    Args:
        ready: called with the address once the server listens.
    """
    with suppress(KeyboardInterrupt), open_blind(pairs, save, seed, port) as server:
        ready(server.url)
        server.serve_forever()


def _application(ballot: Ballot) -> bottle.Bottle:
    app, token = bottle.Bottle(), secrets.token_urlsafe(16)
    page = environment().get_template("blind.html.j2")

    def show() -> str:
        number = ballot.next_number()
        caption = "" if number is None else ballot.pairs[number].caption
        return page.render(number=number, caption=caption, token=token, done=ballot.done, count=len(ballot.pairs))

    @app.hook("after_request")  # type: ignore[untyped-decorator]
    def nothing_foreign() -> None:
        policy = f"default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'nonce-{token}'"
        policy += "; frame-ancestors 'none'"
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in headers.items():
            bottle.response.set_header(name, value)

    @app.get("/")  # type: ignore[untyped-decorator]
    def first() -> str:
        return show()

    @app.get("/picture/<number:int>/<side:re:left|right>")  # type: ignore[untyped-decorator]
    def picture(number: int, side: str) -> bytes:
        if number >= len(ballot.pairs):
            raise bottle.HTTPError(404, "no such picture")
        bottle.response.content_type = "image/png"
        return ballot.picture(number, side).read_bytes()

    @app.post("/vote")  # type: ignore[untyped-decorator]
    def vote() -> str:
        form = bottle.request.forms
        number, choice = form.get("number", ""), form.get("choice", "")
        if not secrets.compare_digest(form.get("token", "").encode(), token.encode()):
            raise bottle.HTTPError(403, "vote on the page itself")
        if (
            not number.isdecimal()
            or len(number) > _DIGITS
            or int(number) >= len(ballot.pairs)
            or choice not in (*_SIDES, "tie")
        ):
            raise bottle.HTTPError(400, "no such choice")
        ballot.vote(int(number), choice)
        return show()

    return app
