"""``python -m flows.runtime.prefect_app PORT``: Prefect's API and UI on 127.0.0.1, behind a check of who asks.

Prefect's own command serves its app without such a check, so this process builds the app and serves it. It ends when
its stdin does, which is a pipe from the process that started it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse

from flows.runtime.prefect_login import LOGIN_PATH, redeem
from flows.runtime.served import end_with_parent
from tasks.web_guard import WebGuard

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_GRACE = 10.0
"""Seconds until the server is ended that was asked to end."""

_ICONS = {"/favicon.ico": "/v2/ico/favicon.ico", "/favicon-dark.ico": "/v2/ico/favicon-dark.ico"}
"""Prefect's UI asks for its icons where they are not."""

_STALE = "This link was used or has expired. Run 'pixelloop login' for a new one.\n"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pixelloop</title></head>
<body><p>Signing in to Prefect ... (this page needs JavaScript)</p>
<script nonce="{nonce}">localStorage.setItem("prefect-password", {password}); location.replace("/");</script>
</body></html>
"""


class GuardedApp:
    """Lets requests and WebSockets through to an app that the guard accepts, and answers one-time links."""

    def __init__(self, app: ASGIApp, guard: WebGuard, folder: Path, password: str) -> None:
        """Args: folder: Prefect's folder in the home; password: what a redeemed link gives to Prefect's UI."""
        self._app, self._guard, self._folder, self._password = app, guard, folder, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        kind = scope["type"]
        refusal = _refusal(self._guard, scope) if kind in ("http", "websocket") else None
        if refusal is not None:
            if kind == "websocket":  # closed before it is accepted: the browser sees a 403
                await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
            else:
                await PlainTextResponse(refusal, 403)(scope, receive, send)
        elif kind == "http" and scope["method"] == "GET" and scope["path"].startswith(LOGIN_PATH):
            await self._sign_in(scope["path"].removeprefix(LOGIN_PATH))(scope, receive, send)
        elif kind == "http" and scope["path"] in _ICONS:
            await RedirectResponse(_ICONS[scope["path"]])(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _sign_in(self, token: str) -> ASGIApp:
        headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        if not redeem(self._folder, token):
            return PlainTextResponse(_STALE, 403, headers)
        nonce = secrets.token_urlsafe(16)
        stored = json.dumps(base64.b64encode(self._password.encode()).decode())  # as Prefect's UI stores it
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; frame-ancestors 'none'"
        return HTMLResponse(
            _PAGE.format(nonce=nonce, password=stored), headers=headers | {"Content-Security-Policy": policy}
        )


def _refusal(guard: WebGuard, scope: Scope) -> str | None:
    headers: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value.decode("latin-1"))

    def first(name: bytes) -> str:
        return headers.get(name, [""])[0]

    return guard.refusal(
        scope.get("method", "GET"), headers.get(b"host", []), headers.get(b"origin", []),
        site=first(b"sec-fetch-site"), mode=first(b"sec-fetch-mode"), dest=first(b"sec-fetch-dest"),
    )  # fmt: skip


def main() -> None:
    """Serve until SIGTERM, or until the process that started this one ends."""
    end_with_parent(_GRACE)
    import uvicorn  # both take seconds, in which the parent may already end
    from prefect.server.api.server import create_app

    guard = WebGuard.from_environment("PREFECT_SERVER_UI_API_URL")
    app = GuardedApp(
        create_app(final=True), guard, Path(os.environ["PREFECT_HOME"]), os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    )
    level = os.environ.get("PREFECT_SERVER_LOGGING_LEVEL", "WARNING").lower()
    # Paths of one-time links must not reach a log.
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level=level, access_log=False, server_header=False)


if __name__ == "__main__":
    main()
