"""Keep libpq's environment variables away from our own server.

`PGSSLMODE=require`, as Supabase advises, or a `PGHOSTADDR` of another database would redirect or break every
connection, and a URL does not override them all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psycopg

_TIMEOUT = 4  # seconds: what keeps a command from starting is said within five
VARIABLES = frozenset(
    "PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGREQUIREAUTH PGCHANNELBINDING PGSERVICE "
    "PGSERVICEFILE PGSYSCONFDIR PGOPTIONS PGAPPNAME PGSSLMODE PGREQUIRESSL PGSSLNEGOTIATION PGSSLCOMPRESSION PGSSLCERT "
    "PGSSLKEY PGSSLCERTMODE PGSSLROOTCERT PGSSLCRL PGSSLCRLDIR PGSSLSNI PGREQUIREPEER PGSSLMINPROTOCOLVERSION "
    "PGSSLMAXPROTOCOLVERSION PGGSSENCMODE PGKRBSRVNAME PGGSSLIB PGGSSDELEGATION PGCONNECT_TIMEOUT PGCLIENTENCODING "
    "PGTARGETSESSIONATTRS PGLOADBALANCEHOSTS PGMINPROTOCOLVERSION PGMAXPROTOCOLVERSION PGOAUTHDEBUG PGDATESTYLE PGTZ "
    "PGGEQO PGLOCALEDIR".split()
)
"""What libpq 18 reads; asyncpg reads some of them too."""


def without_libpq(environ: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment without libpq's variables, for a process that uses our own server."""
    return {name: value for name, value in environ.items() if name not in VARIABLES}


def drop_libpq() -> None:
    """Remove libpq's variables from this process, so that no library connects to our server by them."""
    for name in VARIABLES & os.environ.keys():
        del os.environ[name]


def libpq_hint() -> str:
    """Name the variables that change how a database of the user's own is reached; empty where none is set."""
    names = sorted(VARIABLES & os.environ.keys())
    return f" (set in the environment and used: {', '.join(names)})" if names else ""


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """Connect with the encoding that all our statements need, whatever PGCLIENTENCODING says."""
    settings: dict[str, Any] = {"client_encoding": "utf8", "connect_timeout": _TIMEOUT} | options
    return psycopg.connect(url, **settings)


def reason(error: Exception) -> str:
    """Return the first line of a database's error, and the variables that may have caused it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0] + libpq_hint()
