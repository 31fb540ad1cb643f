"""Numbers and names as text, the same in report, notes and terminal."""

from __future__ import annotations

from schema.findings import GateLedger
from schema.parameters import PARAMETERS, Parameters, ParameterValue

NONE = "–"
"""Stands where nothing was measured or set."""


def score(figure: float | None) -> str:
    """A figure of 0-100 with one decimal."""
    return NONE if figure is None else f"{figure:.1f}"


def signed(figure: float | None) -> str:
    """A difference with its sign and one decimal."""
    return NONE if figure is None else f"{figure:+.1f}"


def percent(share: float | None) -> str:
    """A share of 0-1 as whole percent."""
    return NONE if share is None else f"{100 * share:.0f} %"


def value(setting: ParameterValue) -> str:
    """A parameter's value as kohya's TOML writes it, floats at four digits."""
    if setting is None:
        return NONE
    if isinstance(setting, bool):
        return str(setting).lower()
    return f"{setting:.4g}" if isinstance(setting, float) else str(setting)


def settings(parameters: Parameters) -> str:
    """Several parameters in one line, in the order given: ``network_dim=16, learning_rate=0.001``."""
    return ", ".join(f"{name}={value(setting)}" for name, setting in parameters.items())


def p_value(p: float | None) -> str:
    """A p-value, never shown as zero."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval."""
    return NONE if low is None or high is None else f"{low:.1f} to {high:.1f}"


def gate(ledger: GateLedger) -> str:
    """What the gate did to a campaign, as a sentence; empty where it did nothing."""
    parts = []
    if ledger.refusals:
        rules = ", ".join(f"{n} {words(rule)}" for rule, n in ledger.by_rule.items())
        saved = f", about {duration(ledger.hours_saved * 3600)} saved" if ledger.hours_saved else ""
        parts.append(f"{count(len(ledger.refusals), 'proposal')} refused ({rules}){saved}")
    if ledger.audited:
        wrong = f"{len(ledger.wrong)} did well ({', '.join(ledger.wrong)})" if ledger.wrong else "none did well"
        parts.append(f"{len(ledger.audited)} run all the same to check the gate: {wrong}")
    return "; ".join(parts)


def duration(seconds: float | None) -> str:
    """A span of time, as exact as one cares: ``7 h 05 min``, ``25 min``, ``3 min 20 s``, ``42 s``."""
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left:02d} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """A number with its noun: ``1 run``, ``3 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def words(identifier: str) -> str:
    """An identifier as words: ``wrong_background`` is ``wrong background``."""
    return identifier.replace("_", " ")


def in_taxonomy_order(names: set[str]) -> list[str]:
    """Parameter names in the order of the taxonomy; unknown ones, of imported runs, last by name."""
    known = {name: place for place, name in enumerate(PARAMETERS)}
    return sorted(names, key=lambda name: (known.get(name, len(known)), name))
