"""Run all checks of a data set."""

from __future__ import annotations

from pathlib import Path

from schema.findings import DataAudit, Level
from schema.parameters import Parameters
from tasks.captions_audit.captions import Tokens, balance, caption_findings, least_tokens, protected_tags
from tasks.captions_audit.found import read_entries
from tasks.captions_audit.pictures import picture_findings

_ORDER = tuple(Level)


def audit_dataset(folder: Path, parameters: Parameters, tokens: Tokens = least_tokens) -> DataAudit:
    """Check a data set before training.

    Args:
        folder: pictures with captions, in kohya's layout.
        parameters: parameters of the planned training; only those of captions and data are used.
        tokens: counts a caption's tokens; the default is a lower bound, so it raises no false alarm.

    Returns:
        The findings, most severe first, with the balance of attributes and the protected tags.

    Raises:
        BadDataError: there is no such folder, or it has no pictures.
    """
    extension = str(parameters.get("caption_extension") or ".txt")
    entries = read_entries(folder, extension)
    found = [*caption_findings(entries, parameters, tokens), *picture_findings(entries, parameters)]
    return DataAudit(
        dataset=folder.resolve().name,
        pictures=len(entries),
        findings=tuple(sorted(found, key=lambda f: (_ORDER.index(f.level), -f.share))),
        balance=balance(entries),
        protected=protected_tags(entries, parameters),
    )


def model_tokens(base_model: Path) -> Tokens | None:
    """Return a token counter that uses the tokenizer in a base model's folder; None if there is none."""
    if not (base_model / "tokenizer").is_dir():
        return None
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(base_model / "tokenizer"), local_files_only=True)
    return lambda caption: len(tokenizer(caption, truncation=False).input_ids) - 2
