"""Name problems of the data set to fix before an experiment, since its result would otherwise say little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schema.findings import DataAudit, Level
from schema.parameters import Parameters, ParameterValue

# Parameters whose effect depends on correct captions.
_CAPTIONS = frozenset(
    ("keep_tokens", "shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "text_encoder_lr")
)
# Parameters that raise capacity or exposure. Higher values only help if there are enough different pictures.
_CAPACITY = frozenset(("network_dim", "conv_dim", "max_train_epochs", "num_repeats"))


@dataclass(frozen=True)
class _Need:
    """Link a finding of the audit to the experiments that it spoils.

    Attributes:
        check: Check of the audit.
        names: Parameters whose experiments it spoils.
        text: What the data set needs first.
        rising: Applies only if one of the parameters increases or is switched on.
    """

    check: str
    names: frozenset[str]
    text: str
    rising: bool = False


_NEEDS = (
    _Need("few_pictures", _CAPACITY, "needs more pictures", rising=True),
    _Need("duplicates", _CAPACITY, "needs different pictures", rising=True),
    _Need("caption_mismatch", _CAPTIONS, "needs true captions"),
    _Need("shared_code", _CAPTIONS, "needs one hex code a feature"),
    _Need("equal_captions", _CAPTIONS, "needs captions that differ"),
    _Need("too_many_tokens", _CAPTIONS, "needs shorter captions"),
    _Need("sided_tags", frozenset(("flip_aug",)), "needs captions without left and right", rising=True),
    _Need("soft_edges", frozenset(("resolution", "resize_interpolation")), "needs sharp pictures"),
)


def blockers(change: Parameters, before: Mapping[str, ParameterValue], audit: DataAudit | None) -> tuple[str, ...]:
    """Return what to fix before a change, each as 'needs more pictures: 12 pictures are few'.

    Args:
        change: Parameters with their new values.
        before: The setting to change.
        audit: Audit of the data set; None if there is none.
    """
    found = {f.check: f for f in (audit.findings if audit is not None else ())}
    return tuple(
        f"{need.text}: {found[need.check].sentence}"
        for need in _NEEDS
        if need.check in found
        and (found[need.check].level is not Level.NOTE or need.check == "sided_tags")
        and any(name in need.names and (not need.rising or _rises(v, before.get(name))) for name, v in change.items())
    )


def _rises(value: ParameterValue, before: ParameterValue) -> bool:
    numbers = [float(v) if isinstance(v, int | float) else 0.0 for v in (value, before)]
    return numbers[0] > numbers[1]
