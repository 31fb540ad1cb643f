"""Read untrusted text, TOML and JSON files.

The caller gets plain data or a `ConfigError` of one sentence, whatever the file contains. Only regular files are opened
(a named pipe would block, a device never ends), the size is bounded, and values that no setting can have are refused
here, once, instead of wherever they are used.
"""

from __future__ import annotations

import json
import math
import stat
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from schema.errors import ConfigError, shorten, shown

MOST_BYTES = 64 * 2**20
"""Largest file read by default. An export of 10,000 runs takes about 40 MB; no settings file comes near."""
MOST_TOML_BYTES = 4 * 2**20
"""Largest TOML file. tomllib needs about 2 s for one of this size."""
LONGEST_TEXT = 4096
"""Longest text in a settings file, in characters. Linux limits paths to 4096 bytes; prompts are cut at 75 tokens."""
LONGEST_KEY = 200
"""Longest key in a settings file, in characters. Chosen by hand: no known key comes near."""
LARGEST_NUMBER = 2**63 - 1
"""Largest integer that Postgres (bigint) and torch (int64) can hold."""
_ALLOWED_CONTROLS = "\t\n\r"
_LONGEST_REASON = 200
"""Characters of a parser's message that we quote. It may repeat the offending line, which has no length limit."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: File to read. Links are followed.
        most: Largest accepted size in bytes.

    Raises:
        ConfigError: The file is missing, is a folder, pipe or device, is too large, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path} is a folder, but a file is needed: give the file itself")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path} is not a regular file: pipes and devices are not read")
        with path.open("rb") as file:
            # One byte more than allowed shows that a file is too large, without reading all of it.
            content = file.read(most + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise ConfigError(f"{shorten(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"the path {shown(str(path))} cannot be used: {error}") from None
    if len(content) > most:
        raise ConfigError(f"{path} is larger than {most / 2**20:.0f} MiB: check that it is the right file")
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ConfigError: As `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text: save it as UTF-8") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ConfigError: As `read_text`, or the file is not valid TOML, or `check_plain` refuses a value.
    """
    text = read_text(path, MOST_TOML_BYTES)
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of more than 4300 digits
        raise ConfigError(f"{path} is not valid TOML: {shorten(error, _LONGEST_REASON)}") from None
    check_plain(document, str(path))
    return document


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        ConfigError: As `read_text`, or the file is not valid JSON (NaN and Infinity are not) or too deeply nested.
    """
    return parse_json(read_text(path, most), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON text and return its value.

    Args:
        text: UTF-8 if given as bytes.
        where: Origin of the text, for error messages.

    Raises:
        ConfigError: The text is not valid JSON (NaN and Infinity are not valid) or too deeply nested.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ConfigError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {shorten(error, _LONGEST_REASON)}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def check_plain(document: Any, where: str) -> None:
    """Raise an error if plain data contains a value that no setting can have.

    These are texts with control characters or lone surrogates, overlong texts and keys, integers beyond 64 bits,
    infinities and NaN. Left alone they fail much later: in Postgres, in a path or in a float conversion.

    Raises:
        ConfigError: A value is refused. The message names the file, the key and the problem.
    """
    waiting: list[tuple[str, Any]] = [("", document)]  # a stack, since recursion would fail on deeply nested data
    while waiting:
        key, value = waiting.pop()
        if (problem := _problem(value)) is not None:
            raise ConfigError(f"{where}: {shorten(key)} {problem}")
        if isinstance(value, dict):
            for name, inner in value.items():
                _check_key(name, where)
                waiting.append((f"{key}.{name}" if key else name, inner))
        elif isinstance(value, list):
            waiting.extend((f"{key}[{place}]", inner) for place, inner in enumerate(value))


def _check_key(name: str, where: str) -> None:
    if len(name) > LONGEST_KEY or (problem := _text_problem(name)) is not None:
        problem = problem if len(name) <= LONGEST_KEY else f"is longer than {LONGEST_KEY} characters"
        raise ConfigError(f"{where}: the key {shown(name)} {problem}: remove it")


def _problem(value: Any) -> str | None:
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            return f"is longer than {LONGEST_TEXT} characters: {shown(value)}"
        return _text_problem(value)
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return f"is too large a number: {shown(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, but is {value}"
    return None


def _text_problem(text: str) -> str | None:
    for character in text:
        if (character < " " and character not in _ALLOWED_CONTROLS) or character == "\x7f":
            return f"holds the control character U+{ord(character):04X}"
        if "\ud800" <= character <= "\udfff":
            return "holds half a character (a lone surrogate)"
    return None
