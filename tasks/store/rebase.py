"""Let everything that names a home's former path name its present one: rows of all databases, and trials' files.

Most paths are saved relative to the home. Those that are not are the base model and data set of a campaign whose files
lie in the home, what Prefect passes to flow runs, and what a trainer wrote down.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
from psycopg import sql

from tasks.durable import replace_text

_COLUMNS = """
select c.table_schema, c.table_name, c.column_name, c.udt_name
from information_schema.columns c join information_schema.tables t using (table_schema, table_name)
where t.table_type = 'BASE TABLE' and c.is_generated = 'NEVER' and c.udt_name in ('text', 'varchar', 'json', 'jsonb')
  and c.table_schema not in ('pg_catalog', 'information_schema')
order by 1, 2, 3
"""
_BEFORE, _AFTER = r"(?<![A-Za-z0-9_./-])", r"(?![A-Za-z0-9_.-])"  # what bounds a path in any text
_JSON, _PLAIN = r'^\s*["\[{]', r'^\s*([^"\[{]|$)'
_FILES = ("events.jsonl", "trial.toml")


def rebase_database(url: str, former: str, present: str) -> int:
    """Change a path in all texts and JSON of a database, in one transaction; the number of changed values.

    Repeated after a kill it ends the same.
    """
    changed = 0
    with psycopg.connect(url) as connection:
        connection.execute("set local session_replication_role = replica")  # no trigger: nothing else has changed
        for schema, table, column, kind in connection.execute(_COLUMNS).fetchall():
            name, place = sql.Identifier(str(column)), sql.Identifier(str(schema), str(table))
            for pattern, new, kinds in _changes(former, present):
                statement = sql.SQL(
                    "update {place} set {name} = regexp_replace({name}::text, %(pattern)s, %(new)s, 'g')::{kind}"
                    " where {name}::text ~ %(pattern)s and {name}::text ~ %(kinds)s"
                ).format(place=place, name=name, kind=sql.Identifier(str(kind)))
                values = {"pattern": pattern, "new": new.replace("\\", "\\\\"), "kinds": kinds}
                changed += connection.execute(statement, values).rowcount
    return changed


def rebase_files(runs: Path, former: str, present: str) -> int:
    """Change a path in what trainers wrote down; the number of changed files."""
    changed = 0
    for file in (f for name in _FILES for f in sorted(runs.glob(f"*/*/{name}"))):
        text = before = file.read_text(encoding="utf-8", errors="surrogateescape")
        if "\udc80" <= max(text, default="") <= "\udcff":  # not ours
            continue
        for pattern, new, kinds in _changes(former, present):
            if kinds == _JSON:  # TOML quotes as JSON does
                text = re.sub(pattern, new.replace("\\", "\\\\"), text)
        if text != before:
            replace_text(file, text)
            changed += 1
    return changed


def _changes(former: str, present: str) -> list[tuple[str, str, str]]:
    """List what to search, what to write instead, and in which texts: JSON quotes some characters, in two ways."""
    written = _json(present, True)
    spelt = dict.fromkeys((_json(former, False), _json(former, True)))
    return [
        (_pattern(former, former, present), present, _PLAIN),
        *((_pattern(old, former, present), written, _JSON) for old in spelt),
    ]


def _json(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _pattern(old: str, former: str, present: str) -> str:
    """Match a path, but not one that has been changed before: the new path may begin with the old one."""
    inside = present.removeprefix(former) if present.startswith(former) else ""
    done = "|".join(_escaped(end) for end in dict.fromkeys((inside, _json(inside, False), _json(inside, True))))
    return _BEFORE + _escaped(old) + (f"(?!{done})" if inside else "") + _AFTER


def _escaped(text: str) -> str:
    """Quote for the regular expressions of Python and of Postgres alike."""
    return re.sub(r"([^A-Za-z0-9_\u0080-\U0010ffff])", r"\\\1", text)
