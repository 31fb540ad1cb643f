"""Format numbers and names the same way in report, notes and terminal."""

from __future__ import annotations

from schema.findings import GateLedger
from schema.parameters import PARAMETERS, Parameters, ParameterValue

NONE = "–"
"""Shown where nothing was measured or set."""


def score(figure: float | None) -> str:
    """Format a figure of 0-100 with one decimal."""
    return NONE if figure is None else f"{figure:.1f}"


def signed(figure: float | None) -> str:
    """Format a difference with its sign and one decimal."""
    return NONE if figure is None else f"{figure:+.1f}"


def percent(share: float | None) -> str:
    """Format a share of 0-1 as whole per cent."""
    return NONE if share is None else f"{100 * share:.0f} %"


def value(setting: ParameterValue) -> str:
    """Format a parameter's value as in kohya's TOML, floats with four significant digits."""
    if setting is None:
        return NONE
    if isinstance(setting, bool):
        return str(setting).lower()
    return f"{setting:.4g}" if isinstance(setting, float) else str(setting)


def settings(parameters: Parameters) -> str:
    """Format parameters on one line, in the given order: ``network_dim=16, learning_rate=0.001``."""
    return ", ".join(f"{name}={value(setting)}" for name, setting in parameters.items())


def p_value(p: float | None) -> str:
    """Format a p-value with three decimals, never as zero."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Format both ends of an interval."""
    return NONE if low is None or high is None else f"{low:.1f} to {high:.1f}"


def gate(ledger: GateLedger) -> str:
    """Summarise what the gate did in a campaign; empty if it did nothing."""
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
    """Format seconds with at most two units: ``7 h 05 min``, ``25 min``, ``3 min 20 s``, ``42 s``."""
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
    """Format a number with its noun: ``1 run``, ``3 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def words(identifier: str) -> str:
    """Format an identifier as words: ``wrong_background`` becomes ``wrong background``."""
    return identifier.replace("_", " ")


def in_taxonomy_order(names: set[str]) -> list[str]:
    """Sort parameter names by the taxonomy; unknown ones, from imported runs, come last by name."""
    known = {name: place for place, name in enumerate(PARAMETERS)}
    return sorted(names, key=lambda name: (known.get(name, len(known)), name))
