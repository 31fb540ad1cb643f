"""The audit of a campaign's data set: before a night, and as evidence for diagnoses."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from flows.runtime import progress
from flows.runtime.wiring import Context
from schema.errors import BadDataError
from schema.findings import DataAudit
from tasks.captions_audit.audit import audit_dataset, model_tokens
from tasks.captions_audit.captions import least_tokens


def audited(context: Context) -> DataAudit | None:
    """The audit that was kept with the campaign; None before its first night, or for other data."""
    settings = next((c.settings for c in context.services.store.campaigns() if c.name == context.name), {})
    kept = settings.get("audit")
    audit = DataAudit.model_validate(kept) if kept else None
    return audit if audit is not None and audit.dataset == context.dataset else None


def audit_before(context: Context) -> DataAudit:
    """Audit the data set and show what a user should know before a night is spent on it.

    Raises:
        BadDataError: an error that every trial would end by.
    """
    known = audited(context)
    if known is not None:
        return known
    counts = model_tokens(Path(context.file.base_model)) or least_tokens
    found = audit_dataset(context.file.dataset_dir, context.space.complete({}), counts)
    if found.errors:
        first, more = found.errors[0], len(found.errors) - 1
        also = f" (and {more} more: see 'pixelloop audit')" if more else ""
        raise BadDataError(f"the data set {context.file.dataset_dir}: {first.sentence}: {first.mend}{also}")
    for warning in found.warnings:
        progress.listener.message(f"[yellow]data[/] {escape(warning.sentence)}: {warning.mend}")
    return found.changed(dataset=context.dataset)
