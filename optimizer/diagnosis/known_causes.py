"""Name causes known from experience with LoRA training, with low confidence, for when the history says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.diagnosis.learned_causes import Cause
from optimizer.search.rules import Rule, text_of
from optimizer.search.space import active
from schema.findings import DataAudit
from schema.parameters import Parameters
from schema.states import IssueName


@dataclass(frozen=True)
class _KnownCause:
    """Hold a cause, its fix, and the rule under which it applies; None: always."""

    cause: str
    recommendation: str
    when: str | None = None
    unless_audited: str | None = None  # a check of the data audit that would have found it


# The first cause whose condition holds is named, so the order matters. The last one of each issue has no condition.
_KNOWN_CAUSES: dict[str, tuple[_KnownCause, ...]] = {
    IssueName.PHOTOREALISTIC: (
        _KnownCause(
            "so high a rank has room for photographic detail", "lower network_dim to 32 or less", "network_dim >= 64"
        ),
        _KnownCause(
            "so low a learning rate leaves the base model's style", "raise learning_rate", "learning_rate < 0.0001"
        ),
        _KnownCause("the base model's own style still shows", "train longer, or raise learning_rate a little"),
    ),
    IssueName.WRONG_BACKGROUND: (
        _KnownCause(
            "dropped captions loosen the tie of words and colours",
            "lower caption_dropout_rate",
            "caption_dropout_rate > 0.1",
        ),
        _KnownCause("random colour shifts spoil exact colours", "set color_aug = false", "color_aug == true"),
        _KnownCause(
            "captions may name backgrounds unclearly or not at all",
            "check the captions' background tags",
            unless_audited="caption_mismatch",
        ),
        _KnownCause("background colours are not learnt yet", "train longer, or add pictures with these backgrounds"),
    ),
    IssueName.TWO_TONED_HAIR: (
        _KnownCause(
            "captions may give two features the same colour code",
            "check the captions for shared hex codes",
            unless_audited="shared_code",
        ),
        _KnownCause("hair of one colour is not learnt yet", "train longer, or add pictures with plain hair"),
    ),
    IssueName.WRONG_HAIR: (
        _KnownCause(
            "dropped tags loosen the tie of words and colours",
            "lower caption_tag_dropout_rate",
            "caption_tag_dropout_rate > 0.1",
        ),
        _KnownCause(
            "captions may name hair colours unclearly",
            "check the captions' hair tags",
            unless_audited="caption_mismatch",
        ),
        _KnownCause("hair colours are not learnt yet", "train longer, or add pictures with these hair colours"),
    ),
    IssueName.MISSING_CROWN: (
        _KnownCause(
            "dropped tags hide small features from training",
            "lower caption_tag_dropout_rate",
            "caption_tag_dropout_rate > 0.1",
        ),
        _KnownCause(
            "small features are learnt last, or too few pictures show one", "train longer, or add pictures with a crown"
        ),
    ),
    IssueName.MISSING_ACCESSORY: (
        _KnownCause(
            "small features are learnt last, or too few pictures show one", "train longer, or add pictures that show it"
        ),
    ),
    IssueName.MEMORISED: (
        _KnownCause("the pictures were seen too often, or are too few", "add pictures, or lower max_train_epochs"),
    ),
    IssueName.BELOW_HEALTHY: (
        _KnownCause("no single parameter stands out", "go back to the best run's setting and change one parameter"),
    ),
    IssueName.NOISY_PALETTE: (
        _KnownCause("so high a rank has room for noise", "lower network_dim to 32 or less", "network_dim >= 64"),
        _KnownCause("noise offset shifts flat colours", "lower noise_offset", "noise_offset > 0.05"),
        _KnownCause(
            "flat colours are not learnt yet, or training pictures are no clean pixel art",
            "train longer; check the pictures' grid",
        ),
    ),
    IssueName.BLURRED: (
        _KnownCause("so low a learning rate learns no hard edges", "raise learning_rate", "learning_rate < 0.0001"),
        _KnownCause(
            "hard edges are not learnt yet, or the training pictures are soft", "train longer; check the pictures' grid"
        ),
    ),
    IssueName.DIVERGED: (
        _KnownCause("so high a learning rate", "lower learning_rate tenfold", "learning_rate >= 0.001"),
        _KnownCause(
            "alpha above rank multiplies the learning rate",
            "set network_alpha to network_dim or less",
            "network_alpha > network_dim",
        ),
        _KnownCause(
            "half precision without range for the gradients",
            "use mixed_precision = bf16 or no",
            "mixed_precision == fp16",
        ),
        _KnownCause("the steps are too large for this training", "lower learning_rate threefold"),
    ),
    IssueName.OOM: (
        _KnownCause(
            "so large a batch", "lower train_batch_size and raise gradient_accumulation_steps", "train_batch_size >= 4"
        ),
        _KnownCause(
            "the training needs more memory than there is", "set gradient_checkpointing = true, or lower network_dim"
        ),
    ),
    IssueName.OVERTRAINED: (
        _KnownCause("training went on after the best epoch", "use the best epoch's file; lower max_train_epochs"),
    ),
    IssueName.UNDERTRAINED: (
        _KnownCause("training ended before the quality was reached", "raise max_train_epochs or learning_rate"),
    ),
    IssueName.OSCILLATING: (
        _KnownCause(
            "a learning rate that never falls keeps jumping", "use lr_scheduler = cosine", "lr_scheduler == constant"
        ),
        _KnownCause("the steps are too large to settle", "lower learning_rate"),
    ),
    IssueName.LOW_QUALITY: (
        _KnownCause(
            "so high a learning rate destroys what the base model knew",
            "lower learning_rate tenfold",
            "learning_rate >= 0.001",
        ),
        _KnownCause("so low a learning rate learns nothing", "raise learning_rate", "learning_rate < 0.00005"),
        _KnownCause("no single parameter stands out", "go back to the best run's setting and change one parameter"),
    ),
    IssueName.COLLAPSED: (
        _KnownCause(
            "so high a learning rate destroys what the base model knew",
            "lower learning_rate tenfold",
            "learning_rate >= 0.001",
        ),
        _KnownCause(
            "alpha above rank multiplies the learning rate",
            "set network_alpha to network_dim or less",
            "network_alpha > network_dim",
        ),
        _KnownCause("the steps are too large for this training", "lower learning_rate threefold"),
    ),
    IssueName.SLOW: (
        _KnownCause(
            "no setting that costs time stands out", "look what else runs on the machine, and how warm it gets"
        ),
    ),
    IssueName.BAD_DATA: (
        _KnownCause("the data set cannot be trained on", "mend the pictures or captions that the message names"),
    ),
    IssueName.CRASHED: (
        _KnownCause("the trainer or the machine broke down, not the setting", "read the trial's log and run it again"),
    ),
}

OWN_RATE = ("Prodigy", "DAdaptAdam", "DAdaptLion", "DAdaptAdaGrad", "DAdaptSGD")
"""Optimizers that find the learning rate themselves. The set rate, usually 1, only multiplies theirs."""

_RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
_CONFIDENT = 0.4
"""Confidence of a cause whose condition the run meets. Chosen by hand: below most causes learnt from past runs."""

_GUESS = 0.2
"""Confidence of a cause without a condition. Chosen by hand: it may apply to any run."""


def general_cause(issue: str, parameters: Parameters, audit: DataAudit | None = None) -> Cause:
    """Return the first known cause of an issue that applies. Its text says that it is general experience.

    Causes that the audit of the data would have found, but did not, are skipped.

    Args:
        issue: Name of the issue, which must have known causes.
        parameters: Parameters of the run.
        audit: Audit of the data set; None if there is none.
    """
    full = judged(parameters)
    found = {finding.check for finding in audit.findings} if audit is not None else None
    for known in _KNOWN_CAUSES[issue]:
        if known.unless_audited is not None and found is not None and known.unless_audited not in found:
            continue
        rule = Rule.parse(known.when) if known.when else None
        if rule is None:
            return Cause(f"{known.cause} (general experience)", known.recommendation, _GUESS)
        value = full[rule.left]
        if value is not None and rule.holds(full):
            text = f"{known.cause} ({rule.left} = {text_of(value)}; general experience)"
            return Cause(text, known.recommendation, _CONFIDENT)
    raise AssertionError(f"{issue} has no experience without a condition")


def judged(parameters: Parameters) -> Parameters:
    """Return the effective parameters that experience applies to; the others are None.

    Learning rates are None for optimizers that find the rate themselves.
    """
    full = active(parameters)
    return full | dict.fromkeys(_RATES) if full["optimizer_type"] in OWN_RATE else full
