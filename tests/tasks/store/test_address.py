from __future__ import annotations

import psycopg
import pytest

from schema.errors import ConfigError
from tasks.store.address import postgres_address
from tasks.store.embedded import EmbeddedPostgres

SECRET = "SECRETPW"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"postgresql://u:{SECRET}%@h/d", "write @ as %40"),
        (f"postgresql://u:{SECRET}@x@h/d", "write @ as %40"),
        (f"postgresql://u:{SECRET}/x@h/d", "write @ as %40"),
        (f"postgresql://u:{SECRET}?x@h/d", "write @ as %40"),
        (f"postgresql://u:{SECRET}#x@h/d", "write @ as %40"),
        (f"postgresql://u:12{SECRET}:{SECRET}@h:{SECRET}/d", "port .* is no number"),
        (f"mysql://u:{SECRET}@h/d", "another kind of database"),
        (SECRET, "no address of a Postgres"),
        ("", "no address of a Postgres"),
        (f"hosst=h password={SECRET}", "cannot be read"),
        (f"host=h password='{SECRET}", "cannot be read"),
        (f"postgresql://u:{SECRET}@h/d?nosuch={SECRET}", "cannot be read"),
        (f"host=a,b password={SECRET}", "several hosts"),
    ],
)
def test_what_is_no_address_is_refused_without_being_printed(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        postgres_address(text)
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgres://u:p@h:5433/d", "postgresql://u:p@h:5433/d"),
        ("postgresql+psycopg://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql://u:a%40b%25@h/d?sslmode=require", "postgresql://u:a%40b%25@h/d?sslmode=require"),
        ("host=h port=5 user=u password='a @%/' dbname=d", "postgresql://u:a%20%40%25%2F@h:5/d"),
        ("host=h dbname=d sslmode=require", "postgresql://h/d?sslmode=require"),
        ("host=/run/pg user=u dbname=d", "postgresql://u@/d?host=%2Frun%2Fpg"),
    ],
)
def test_every_spelling_becomes_one(text: str, url: str) -> None:
    assert postgres_address(text) == url
    assert postgres_address(url) == url


def test_keywords_reach_a_server_as_the_address_does(postgres: EmbeddedPostgres) -> None:
    state = postgres.state() or {}
    words = f"host=127.0.0.1 port={state['port']} user=postgres password={state['password']} dbname=postgres"
    with psycopg.connect(postgres_address(words)) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
