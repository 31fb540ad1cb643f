"""Prefect's API as one of our own clients asks it: with the home's password and a CSRF token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from flows.runtime.prefect_login import password


def ask(folder: Path, url: str, method: str, path: str, data: object = None) -> Any:
    """Args: folder: Prefect's in the home; url: of the API."""
    user, _, secret = password(folder).partition(":")
    with httpx.Client(base_url=url, auth=(user, secret), timeout=30) as client:
        token = client.get("/csrf-token", params={"client": "test"}).raise_for_status().json()["token"]
        headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        answer = client.request(method, path, json=data, headers=headers).raise_for_status()
    return answer.json() if answer.content else None
