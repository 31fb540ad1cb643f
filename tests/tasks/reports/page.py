"""Reads a report back: its elements, texts and the figures in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "img", "br", "input", "hr", "line"}


class Page(HTMLParser):
    """Everything a test asks of a page; fails on tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "script":
            self.scripts.append((attributes, ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements of a tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        """All ids of the page."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    @property
    def figures(self) -> dict[str, Any]:
        """The plotly figures."""
        [text] = [text for attributes, text in self.scripts if attributes.get("id") == "figures"]
        found: dict[str, Any] = json.loads(text)
        return found
