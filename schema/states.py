"""Names of states and kinds that records hold. JSON and database rows hold the values as plain text."""

from __future__ import annotations

from enum import StrEnum


class IssueName(StrEnum):
    """What can be wrong with pictures, or with a run as a whole."""

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
    """Why the gate let a proposal run or refused it."""

    HARD_RULE = "hard_rule"
    KNOWN_FAILURE = "known_failure"
    KNOWN_RESULT = "known_result"
    PREDICTED_FAILURE = "predicted_failure"
    AUDIT = "audit"
    LEAST_BAD = "least_bad"
    ACCEPTED = "accepted"
    PAIRED_TEST = "paired_test"
    """A run that a user's experiment asks for: the gate has no say, and it is not stopped early."""


class HypothesisState(StrEnum):
    """How far a proposed experiment has come."""

    PROPOSED = "proposed"
    QUEUED = "queued"
    RUNNING = "running"
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class PrincipleState(StrEnum):
    """What became of a rule that good runs keep. An accepted one is a hard limit."""

    PROPOSED = "proposed"
    ACCEPTED = "accepted"
    DROPPED = "dropped"
    WITHDRAWN = "withdrawn"


class EffectVerdict(StrEnum):
    """Whether a parameter moved an outcome, strongest claim first."""

    CRITICAL = "critical"
    SECONDARY = "secondary"
    NONE_DETECTED = "none detected"
    NOT_ENOUGH_DATA = "not enough data"
    NEVER_VARIED = "never varied"

    @property
    def is_claim(self) -> bool:
        """True where an effect is claimed."""
        return self in (EffectVerdict.CRITICAL, EffectVerdict.SECONDARY)


class ArtifactKind(StrEnum):
    """What a file of a run is."""

    CHECKPOINT = "checkpoint"
    SAMPLE = "sample"
    SHEET = "sheet"
