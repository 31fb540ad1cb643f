"""Name the states and kinds that records hold. JSON and database rows store the values as plain text."""

from __future__ import annotations

from enum import StrEnum


class IssueName(StrEnum):
    """Name a problem of a run's pictures or of the run as a whole."""

    COLLAPSED = "collapsed"
    PHOTOREALISTIC = "photorealistic"
    WRONG_BACKGROUND = "wrong_background"
    WRONG_HAIR = "wrong_hair"
    TWO_TONED_HAIR = "two_toned_hair"
    MISSING_CROWN = "missing_crown"
    MISSING_ACCESSORY = "missing_accessory"
    MEMORISED = "memorised"
    NOISY_PALETTE = "noisy_palette"
    BLURRED = "blurred"
    LOW_QUALITY = "low_quality"
    BELOW_HEALTHY = "below_healthy"
    OVERTRAINED = "overtrained"
    UNDERTRAINED = "undertrained"
    OSCILLATING = "oscillating"
    DIVERGED = "diverged"
    OOM = "oom"
    BAD_DATA = "bad_data"
    CRASHED = "crashed"
    SLOW = "slow"


class GateRule(StrEnum):
    """Name the reason why the gate ran or refused a proposal."""

    HARD_RULE = "hard_rule"
    KNOWN_FAILURE = "known_failure"
    KNOWN_RESULT = "known_result"
    PREDICTED_FAILURE = "predicted_failure"
    AUDIT = "audit"
    LEAST_BAD = "least_bad"
    ACCEPTED = "accepted"
    PAIRED_TEST = "paired_test"
    """A run of a paired test. The gate does not judge it, and it is never stopped early."""


class HypothesisState(StrEnum):
    """Name a stage in the life of a proposed experiment."""

    PROPOSED = "proposed"
    QUEUED = "queued"
    RUNNING = "running"
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class PrincipleState(StrEnum):
    """Name the status of a rule that good runs follow. An accepted rule is a hard limit."""

    PROPOSED = "proposed"
    ACCEPTED = "accepted"
    DROPPED = "dropped"
    WITHDRAWN = "withdrawn"


class EffectVerdict(StrEnum):
    """Say whether a parameter affected an outcome, strongest claim first."""

    CRITICAL = "critical"
    SECONDARY = "secondary"
    NONE_DETECTED = "none detected"
    NOT_ENOUGH_DATA = "not enough data"
    NEVER_VARIED = "never varied"

    @property
    def is_claim(self) -> bool:
        """Return whether this verdict claims an effect."""
        return self in (EffectVerdict.CRITICAL, EffectVerdict.SECONDARY)


class CampaignStatus(StrEnum):
    """How far a campaign has come. *Interrupted* is only shown, where nothing runs that should."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


class ArtifactKind(StrEnum):
    """Name the kind of a file that a run produced."""

    CHECKPOINT = "checkpoint"
    SAMPLE = "sample"
    SHEET = "sheet"
