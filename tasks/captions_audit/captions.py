"""Check captions without looking at the pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from schema.findings import AuditFinding, Level
from schema.parameters import Parameters
from schema.prompts import ATTRIBUTES, COLOUR_WORDS, expectation_of
from tasks.captions_audit.found import Entry, finding

Tokens = Callable[[str], int]
"""Function that counts a caption's tokens, without start and end tokens."""

_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_SIDES = frozenset(("left", "right"))
_TRIGGER_SHARE = 0.9  # of the captions that begin with one tag; not 1.0, because a few captions may lack the trigger
_DOMINANT_SHARE = 0.6  # of the examples of an attribute, above which one value crowds out the others. Chosen by hand
_MIN_EXAMPLES = 3  # fewer examples are too few to learn an attribute. Chosen by hand
_NO_NOUN = frozenset(("dark", "light", "pale", "bright", "and", "colour", "color", "hex", "code"))
# CLIP's tokenizer splits text like this before it looks at its vocabulary; each piece is at least one token.
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")


def least_tokens(caption: str) -> int:
    """Return a lower bound of a caption's tokens that holds for all of CLIP's tokenizers."""
    return len(_PIECES.findall(caption))


def caption_findings(entries: Sequence[Entry], parameters: Parameters, tokens: Tokens) -> list[AuditFinding]:
    """Run all checks that need only the captions.

    Args:
        entries: the data set.
        parameters: parameters of the training, by kohya's names.
        tokens: counts a caption's tokens.
    """
    written = [entry for entry in entries if entry.caption]
    return [
        *_absent(entries),
        *_shared_codes(written),
        *_loose_codes(written),
        *_equal_captions(written),
        *_too_long(written, parameters, tokens),
        *_sided(written, parameters),
        *_unprotected(written, parameters),
        *_unbalanced(written),
    ]


def balance(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Return, for each attribute, the words before its noun and how often they occur, most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        for tag in entry.tags:
            words = re.findall(r"[a-z]+", _HEX.sub(" ", tag.lower()))
            for attribute, nouns in ATTRIBUTES.items():
                if noun := next((word for word in words if word in nouns), None):
                    value = " ".join(words[: words.index(noun)]) or noun
                    counts.setdefault(attribute, Counter())[value] += 1
    return {attribute: dict(found.most_common()) for attribute, found in counts.items()}


def protected_tags(entries: Sequence[Entry], parameters: Parameters) -> tuple[str, ...]:
    """Return up to 20 tags that keep_tokens protects from shuffling and tag dropout, most frequent first."""
    kept = int(parameters.get("keep_tokens") or 0)
    return tuple(tag for tag, _ in Counter(tag for e in entries for tag in e.tags[:kept]).most_common(20))


def _absent(entries: Sequence[Entry]) -> list[AuditFinding]:
    missing = [e for e in entries if e.caption is None]
    empty = [e for e in entries if e.caption == ""]
    return [
        *finding("missing_caption", Level.ERROR, missing, entries, "have no readable caption file",
                 "write one, in UTF-8, beside each picture, or set caption_extension"),
        *finding("empty_caption", Level.ERROR, empty, entries, "have an empty caption",
                 "write the captions, or remove the pictures"),
    ]  # fmt: skip


def _shared_codes(entries: Sequence[Entry]) -> list[AuditFinding]:
    bad = [e for e in entries if shares_code(e)]
    return finding(
        "shared_code", Level.WARNING, bad, entries, "give two features the same hex code",
        "give each feature its own code, or leave the code of one out: shared codes tie the features' colours together",
    )  # fmt: skip


def shares_code(entry: Entry) -> bool:
    """Return whether two different features share a hex code; one feature may be named twice."""
    owners: dict[str, set[str]] = {}
    for tag in entry.tags:
        noun = _noun(tag)
        for code in _HEX.findall(tag):
            owners.setdefault(code.lower(), set()).add(noun)
    return any(len(nouns - {""}) > 1 for nouns in owners.values())


def _noun(tag: str) -> str:
    """Return the attribute that a tag names, else its words that are not colours; "" if there are none."""
    promised = [name for name in expectation_of(tag).model_fields_set if getattr(expectation_of(tag), name)]
    if promised:
        return promised[0]
    words = re.findall(r"[a-z]+", _HEX.sub(" ", tag.lower()))
    return " ".join(word for word in words if word not in COLOUR_WORDS and word not in _NO_NOUN)


def _loose_codes(entries: Sequence[Entry]) -> list[AuditFinding]:
    bad = [e for e in entries if any(_HEX.search(tag) and not _noun(tag) for tag in e.tags)]
    return finding(
        "code_without_feature", Level.WARNING, bad, entries, "have a hex code that belongs to no feature",
        "write the code in the feature's tag: 'brown hair (#5a3a22)'",
    )  # fmt: skip


def _equal_captions(entries: Sequence[Entry]) -> list[AuditFinding]:
    counts = Counter(e.caption for e in entries)
    bad = [e for e in entries if counts[e.caption] > 1]
    return finding(
        "equal_captions", Level.WARNING, bad, entries, "have the caption of another picture, word for word",
        "say what sets the pictures apart",
    )  # fmt: skip


def _too_long(entries: Sequence[Entry], parameters: Parameters, tokens: Tokens) -> list[AuditFinding]:
    limit = int(parameters.get("max_token_length") or 75)
    bad = [e for e in entries if tokens(e.caption or "") > limit]
    larger = next((n for n in (150, 225) if n > limit), None)
    fix = f"set max_token_length = {larger}, or shorten them" if larger else "shorten them"
    return finding(
        "too_many_tokens", Level.WARNING, bad, entries,
        f"have captions of more than max_token_length = {limit} tokens, and the rest is never read", fix,
    )  # fmt: skip


def _sided(entries: Sequence[Entry], parameters: Parameters) -> list[AuditFinding]:
    flips = bool(parameters.get("flip_aug"))
    bad = [e for e in entries if _SIDES & set(re.findall(r"[a-z]+", (e.caption or "").lower()))]
    level = Level.WARNING if flips else Level.NOTE
    sentence = "name a side (left, right)" + (" although flip_aug mirrors them" if flips else "")
    fix = "set flip_aug = false, or leave sides out of the captions"
    return finding("sided_tags", level, bad, entries, sentence, fix)


def _unprotected(entries: Sequence[Entry], parameters: Parameters) -> list[AuditFinding]:
    # A tag that begins nearly all captions is the trigger; shuffling moves it unless keep_tokens protects it.
    moves = bool(parameters.get("shuffle_caption")) or bool(parameters.get("caption_tag_dropout_rate"))
    kept = int(parameters.get("keep_tokens") or 0)
    if not entries or not moves or kept > 0 or parameters.get("keep_tokens_separator"):
        return []
    firsts = Counter(e.tags[0] for e in entries if e.tags)
    if not firsts:
        return []
    first, many = firsts.most_common(1)[0]
    if many < _TRIGGER_SHARE * len(entries):
        return []
    bad = [e for e in entries if e.tags and e.tags[0] == first]
    return finding(
        "unprotected_trigger", Level.WARNING, bad, entries,
        f"begin with {first!r}, which shuffling or tag dropout moves or drops as keep_tokens is 0",
        "set keep_tokens = 1",
    )  # fmt: skip


def _unbalanced(entries: Sequence[Entry]) -> list[AuditFinding]:
    found: list[AuditFinding] = []
    for attribute, values in balance(entries).items():
        total = sum(values.values())
        common, many = next(iter(values.items()))
        holders = [e for e in entries if any(f"{common} " in tag.lower() for tag in e.tags)]
        if len(values) > 1 and many > _DOMINANT_SHARE * total and total >= _MIN_EXAMPLES:
            found += finding(
                "unbalanced", Level.NOTE, holders, entries, f"have the {attribute} {common!r}, the others less",
                f"add pictures with another {attribute}, or repeat those less",
            )  # fmt: skip
        if total < _MIN_EXAMPLES:
            found += finding(
                "rare_attribute", Level.NOTE, [e for e in entries if _names(e, attribute)], entries,
                f"show a {attribute}: too few to learn it", f"add pictures with a {attribute}",
            )  # fmt: skip
    return found


def _names(entry: Entry, attribute: str) -> bool:
    return any(set(re.findall(r"[a-z]+", tag.lower())) & set(ATTRIBUTES[attribute]) for tag in entry.tags)
