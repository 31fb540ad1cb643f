"""Which campaign files were started on this machine: only these may lie outside the home.

The database names a campaign's file as well, but its rows may come from an import. This list lies in the home, no
import writes it, and it counts only in the folder that it was written in. A copied or restored home keeps of it what
the home that it was copied from, where that still exists on this machine, trusts as well.
"""

from __future__ import annotations

import json
from pathlib import Path

from tasks.home import Home, replace_text

_FILE = "campaigns.json"


class KnownCampaigns:
    """The campaign files that were started here, by name."""

    def __init__(self, home: Home) -> None:
        """Read the list of a home; one that is broken or came with a copy counts as empty."""
        self._home = home
        self._files = self._read()

    @staticmethod
    def exist(home: Home) -> bool:
        """Return whether a home has such a list: those of earlier versions have none."""
        return (home.root / _FILE).exists()

    def file(self, campaign: str) -> Path | None:
        """Return the file that a campaign was started with here; None where it was not."""
        path = self._files.get(campaign)
        return None if path is None else self._home.absolute(path)

    def remember(self, campaign: str, file: Path) -> None:
        """Keep the file that a campaign is started with."""
        files = self._read() | {campaign: self._home.relative(file)}
        if files != self._files or not self.exist(self._home):
            self._write(files)

    def begin(self) -> None:
        """Make the list where there is none."""
        if not self.exist(self._home):
            self._write({})

    def _write(self, files: dict[str, str]) -> None:
        self._files = files
        kept = {"folder": self._folder(), "home": str(self._home.root), "files": files}
        replace_text(self._home.root / _FILE, json.dumps(kept, indent=2))

    def _read(self) -> dict[str, str]:
        try:
            kept = json.loads((self._home.root / _FILE).read_text(encoding="utf-8"))
            files = {name: path for name, path in kept["files"].items() if isinstance(path, str) and "\0" not in path}
            if kept["folder"] == self._folder():
                return files
            return self._shared_with(Home.at(Path(kept["home"])), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _shared_with(self, original: Home, files: dict[str, str]) -> dict[str, str]:
        """Return the files of a copied list that the original trusts too; anyone may write such a list, so ask it."""
        theirs = json.loads((original.root / _FILE).read_text(encoding="utf-8"))
        if theirs["folder"] != original.root.stat().st_ino:
            return {}
        trusted = {name: original.absolute(path) for name, path in theirs["files"].items()}
        return {name: path for name, path in files.items() if trusted.get(name) == original.absolute(path)}

    def _folder(self) -> int:
        """Return what tells this folder from its copies, and stays where it is renamed."""
        return self._home.root.stat().st_ino
