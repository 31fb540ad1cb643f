"""Decide whether a request may reach a web server of ours on this machine.

A browser lets any page send requests to 127.0.0.1, open WebSockets there, and, by DNS rebinding, read the answers under
a name of its own. Three headers give such a page away; a page cannot set any of them. All our servers ask `WebGuard`.

Starlette's TrustedHostMiddleware does not fit: it compares names without ports, and knows neither Origin nor Fetch
metadata.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from schema.errors import ConfigError

PUBLIC_URLS = "PIXELLOOP_PUBLIC_URLS"
"""Environment variable with the addresses at which a reverse proxy publishes our servers, separated by spaces."""

_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
"""Names that no DNS answer can redirect. The port is free, so that an ssh tunnel may start at another one: a page of
another port is refused all the same, because its Origin differs from the Host."""

_READING = {"GET", "HEAD", "OPTIONS"}
_OWN_SITES = {"", "none", "same-origin"}
"""Values of Sec-Fetch-Site for an address typed by the user, a page of ours, and a program that is no browser."""

_WRONG_HOST = f"open this server at the address that pixelloop printed, or add its public address to {PUBLIC_URLS}\n"
_WRONG_PAGE = f"requests from other web pages are refused; behind a proxy, add its address to {PUBLIC_URLS}\n"


@dataclass(frozen=True)
class WebGuard:
    """Knows the names of a server and judges requests by their headers.

    Attributes:
        public: origins of a reverse proxy in front of it, such as ``https://night.example.org``.
    """

    public: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, *more: str) -> WebGuard:
        """Return a guard that also accepts the public addresses in the environment.

        Args:
            more: further variables with public addresses; a path in them is an address of our own.

        Raises:
            ConfigError: an address is none.
        """
        found = [
            _origin(variable, address)
            for variable in (PUBLIC_URLS, *more)
            for address in os.environ.get(variable, "").replace(",", " ").split()
            if not address.startswith("/")
        ]
        return cls(frozenset(found))

    def refusal(
        self,
        method: str,
        hosts: Iterable[str],
        origins: Iterable[str],
        *,
        site: str = "",
        mode: str = "",
        dest: str = "",
    ) -> str | None:
        """Return the sentence that refuses a request, or None if it may pass.

        Args:
            method: of the request; a WebSocket's handshake is a GET.
            hosts: values of the header Host.
            origins: values of the header Origin. Browsers send it with all that writes, and with WebSockets.
            site: value of Sec-Fetch-Site.
            mode: value of Sec-Fetch-Mode.
            dest: value of Sec-Fetch-Dest.
        """
        host = ",".join(hosts).lower()
        if _LOOPBACK.fullmatch(host) is None and host not in {urlsplit(origin).netloc for origin in self.public}:
            return _WRONG_HOST
        own = {f"http://{host}"} if _LOOPBACK.fullmatch(host) else set()
        if any(origin.lower() not in own | self.public for origin in origins):
            return _WRONG_PAGE
        if site.lower() not in _OWN_SITES:
            # A link from elsewhere may open a page of ours, but neither embed nor load anything of it.
            followed_link = method in _READING and mode == "navigate" and dest in ("", "document")
            return None if followed_link else _WRONG_PAGE
        return None


def _origin(variable: str, address: str) -> str:
    """Return scheme, name and port of an address as browsers write them in Origin."""
    try:
        parts = urlsplit(address.lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ConfigError(f"{variable}: {address[:200]!r} is no address: write it as https://night.example.org")
    usual = {"http": 80, "https": 443}[parts.scheme]
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}" + ("" if port in (None, usual) else f":{port}")
