"""What the history teaches: what matters, why runs failed, what to try next."""

from optimizer.analysis.diagnosis import blamed, diagnose_epoch, diagnose_run
from optimizer.analysis.hypotheses import next_experiments
from optimizer.analysis.survey import quality_effects, survey

__all__ = [
    "blamed",
    "diagnose_epoch",
    "diagnose_run",
    "next_experiments",
    "quality_effects",
    "survey",
]
