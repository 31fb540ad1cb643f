"""The audit of a data set: all checks together."""

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
        folder: pictures with captions, as kohya lays them out.
        parameters: of the training to come; those of captions and data count.
        tokens: counts a caption's tokens; the default counts too few rather than too many.

    Raises:
        BadDataError: no folder or no pictures.
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
    """Counts with the tokenizer of a base model's folder; None where it has none there."""
    if not (base_model / "tokenizer").is_dir():
        return None
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(base_model / "tokenizer"), local_files_only=True)
    return lambda caption: len(tokenizer(caption, truncation=False).input_ids) - 2
