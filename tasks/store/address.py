"""Check the address of a Postgres once, in one place, without ever printing it: it holds a password."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from schema.errors import ConfigError

_FORM = "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_QUOTE = "quote it: write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_POSTGRES = {"postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"}
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORTS = re.compile(r"\d+(,\d+)*")


def postgres_address(text: str, what: str = "DATABASE_URL") -> str:
    """Return an address in the one form that psycopg, SQLAlchemy and Optuna all read: ``postgresql://...``.

    Args:
        text: the same, the spelling ``postgres://``, or libpq's keywords (``host=... dbname=...``).
        what: names the origin in messages.

    Raises:
        ConfigError: it is none of these. The message holds no part of it.
    """
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _of_keywords(text, what)
    if scheme[1].lower() not in _POSTGRES:
        raise ConfigError(f"{what} is the address of another kind of database, but pixelloop needs Postgres: {_FORM}")
    rest = text[scheme.end() :]
    if _PERCENT.search(rest):
        raise ConfigError(f"{what} holds a % that quotes nothing, probably in the password: {_QUOTE}")
    server = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if rest.count("@") > 1 or ("@" in rest and "@" not in server) or "#" in rest:
        raise ConfigError(f"the user or password in {what} holds one of @ / ? # as it is: {_QUOTE}")
    url = f"postgresql://{rest}"
    _parsed(url, what)
    return url


def _of_keywords(text: str, what: str) -> str:
    if "=" not in text:
        raise ConfigError(f"{what} is no address of a Postgres: {_FORM}")
    known = _parsed(text, what)
    user = quote(known.pop("user", ""), safe="")
    password = quote(known.pop("password", ""), safe="")
    name = quote(known.pop("dbname", user), safe="")
    host, port = known.pop("host", ""), known.pop("port", "")
    if "," in host or "," in port:
        raise ConfigError(f"{what} names several hosts: name one, or {_FORM}")
    if "/" in host or ":" in host:  # a socket's folder or an IPv6 address
        known |= {"host": host} | ({"port": port} if port else {})
        host = port = ""
    account = user + (f":{password}" if password else "") + ("@" if user or password else "")
    return f"postgresql://{account}{host}{f':{port}' if port else ''}/{name}" + (
        f"?{urlencode(known, quote_via=quote)}" if known else ""
    )


def _parsed(text: str, what: str) -> dict[str, str]:
    try:
        known = {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except psycopg.Error:  # its message repeats parts of the address
        raise ConfigError(f"{what} cannot be read as an address: {_FORM}; if the password is odd, {_QUOTE}") from None
    if not _PORTS.fullmatch(known.get("port", "0")):
        raise ConfigError(f"the port in {what} is no number: {_FORM}; if the password is odd, {_QUOTE}")
    return known
