"""Define what the analysis can claim: predictions, verdicts, diagnoses, effects, experiments.

Every claim states the number of runs behind it, and whether it is *observed* or *tested*.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from schema.base import Frozen
from schema.parameters import Parameters
from schema.states import EffectVerdict, GateRule, HypothesisState, PrincipleState


class Evidence(StrEnum):
    """Say how a claim was reached. Only a paired experiment makes a claim *tested*."""

    OBSERVED = "observed"
    TESTED = "tested"


class Prediction(Frozen):
    """Predict the result of a set of parameters before the run."""

    quality: float = Field(description="expected best quality of the run, 0-100")
    low: float = Field(description="lower end of the interval")
    high: float = Field(description="upper end of the interval")
    confidence: float = Field(0.9, description="share of true values the interval should hold")
    p_fail: float = Field(ge=0, le=1, description="probability that the run fails")
    n: int = Field(ge=0, description="runs the prediction was made from")
    worth: float | None = Field(None, description="own runs that these are worth: those from elsewhere count less")
    nearest: tuple[str, ...] = Field((), description="names of the most similar past runs")
    failures: dict[str, float] = Field({}, description="p_fail shared out over the kinds of failure seen")
    moves: dict[str, float] = Field(
        {}, description="by searched parameter, points its value gains against the mean over its span"
    )


class Decision(StrEnum):
    """Name the gate's decision about a proposal."""

    RUN = "run"
    SKIP = "skip"


class GateVerdict(Frozen):
    """Record the gate's decision about one proposal, accepted or refused, and the reason."""

    decision: Decision
    reason: str = Field(description="a sentence a person can check")
    rule: GateRule
    evidence: tuple[str, ...] = Field((), description="names of the runs the reason rests on")
    p_fail: float | None = None


class RefusedProposal(Frozen):
    """Record a proposal that the gate refused."""

    uid: uuid.UUID
    campaign: str
    number: int
    parameters: Parameters
    verdict: GateVerdict
    predicted: Prediction | None = None
    created_at: datetime


class GateLedger(Frozen):
    """Report the gate's refusals, audits and savings in a campaign."""

    refusals: tuple[RefusedProposal, ...] = Field((), description="in the order of the proposals")
    audited: tuple[str, ...] = Field((), description="runs made only to check the gate, that have ended")
    wrong: tuple[str, ...] = Field((), description="those of them that did not fail: the gate was wrong")
    hours_saved: float | None = Field(None, description="that what was refused would have taken; None: no run ended")

    @property
    def by_rule(self) -> dict[str, int]:
        """Return the number of refusals by rule."""
        rules = [refusal.verdict.rule for refusal in self.refusals]
        return {rule: rules.count(rule) for rule in dict.fromkeys(rules)}


class LikelyCause(Frozen):
    """Name a possible cause of a problem, and how to fix it."""

    factor: str = Field(description="what is blamed: a training parameter, or a check of the data audit")
    category: str = Field(description="architecture | captions | dynamics | data | progression | loss | resources")
    sentence: str
    recommendation: str
    confidence: float = Field(ge=0, le=1, description="chance that this is the cause, among all known suspects")
    evidence: tuple[str, ...] = ()


class Diagnosis(Frozen):
    """Describe one problem of a run or epoch, its likely cause and what to change."""

    issue: str = Field(description="a name of `IssueName`, or what an imported run calls it")
    category: str = Field(description="architecture | captions | dynamics | data | progression | resources")
    severity: float = Field(ge=0, le=1, description="how far the measurement is from good")
    cause: str = Field(description="likely cause, one sentence")
    recommendation: str = Field(description="what to change, one sentence")
    confidence: float = Field(ge=0, le=1)
    evidence: tuple[str, ...] = Field((), description="measurements and runs the diagnosis rests on")
    normal_for_epoch: bool = Field(False, description="history says it resolves in later epochs")
    causes: tuple[LikelyCause, ...] = Field((), description="all that may be blamed, the likeliest first")
    expected_gain: float | None = Field(None, description="quality points that healthy runs have more; None: unknown")


class Level(StrEnum):
    """Grade a finding of the data audit."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class AuditFinding(Frozen):
    """Describe one problem in a data set."""

    check: str = Field(description="missing_caption | shared_code | caption_mismatch | soft_edges | few_pictures | ...")
    level: Level = Field(description="an error stops a night, a warning is shown before it, a note is for reading")
    sentence: str = Field(description="what is wrong and where")
    mend: str = Field("", description="what to do about it")
    count: int = Field(0, ge=0, description="pictures it concerns")
    share: float = Field(0.0, ge=0, le=1, description="of all pictures")
    files: tuple[str, ...] = Field((), description="the pictures, the first few")


class DataAudit(Frozen):
    """Report the audit of a data set. The diagnosis of runs uses its findings as possible causes."""

    dataset: str
    pictures: int = Field(ge=0)
    findings: tuple[AuditFinding, ...] = ()
    balance: dict[str, dict[str, int]] = Field({}, description="by attribute, pictures of each value in the captions")
    protected: tuple[str, ...] = Field((), description="tags that keep_tokens keeps in front, the commonest first")

    @property
    def errors(self) -> tuple[AuditFinding, ...]:
        """Return the findings that stop a campaign."""
        return tuple(f for f in self.findings if f.level is Level.ERROR)

    @property
    def warnings(self) -> tuple[AuditFinding, ...]:
        """Return the findings to show before a campaign starts."""
        return tuple(f for f in self.findings if f.level is Level.WARNING)


class ParameterEffect(Frozen):
    """Describe how one outcome changed with one parameter over past runs."""

    parameter: str
    outcome: str = Field("quality", description="quality, a metric, a kind of failure (0 or 1), best_epoch, seconds")
    n: int
    spearman: float | None = Field(None, description="rank correlation, numeric parameters only")
    pearson: float | None = Field(None, description="correlation of values, logs of those on a log scale")
    by_value: dict[str, float] = Field({}, description="mean of the outcome by category, or below and above the split")
    effect: float = Field(description="quality points between the better and the worse half or category")
    low: float | None = Field(None, description="lower end of the bootstrap interval of effect")
    high: float | None = None
    p_value: float | None = Field(None, description="permutation test, corrected for the number of parameters")
    best: str = Field("", description="where it was best, as text: '<= 0.001' or 'cosine'")
    importance: float | None = Field(None, description="share of explained variation, 0-1")
    verdict: EffectVerdict
    confounded_with: tuple[str, ...] = ()
    evidence: Evidence = Evidence.OBSERVED


class Interaction(Frozen):
    """Describe two parameters whose joint effect on quality is not the sum of their single effects."""

    parameters: tuple[str, str]
    n: int
    share: float = Field(ge=0, le=1, description="of the variation that the single effects leave")
    p_value: float = Field(description="permutation of residuals, corrected for the number of pairs tried")
    sentence: str


class ImpactReport(Frozen):
    """Report the effect of each parameter on each outcome, over all comparable runs."""

    n_runs: int
    outcomes: tuple[str, ...] = Field((), description="those that varied and were tested")
    tests: int = Field(0, description="claims that the p-values are corrected for")
    effects: tuple[ParameterEffect, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    importance: dict[str, float] = Field({}, description="share of the variation of quality, 0-1")
    importance_by: str = Field("", description="the model that the importance is from")


class Hypothesis(Frozen):
    """Propose an experiment: parameters to change against the best run, and the expected gain."""

    uid: uuid.UUID
    campaign: str
    priority: int = Field(ge=1, description="1 is first")
    change: Parameters = Field(description="parameters to change against the best run")
    parameters: Parameters = Field(description="the full setting to run")
    rationale: str
    expected: Prediction
    gain: float = Field(description="expected quality minus best quality so far")
    state: HypothesisState = HypothesisState.PROPOSED
    gpu_hours: float | None = Field(None, ge=0, description="estimated training time; None: no run to judge from")
    blockers: tuple[str, ...] = Field((), description="what should be done first, as 'needs more pictures: ...'")
    created_at: datetime


class PrincipleDetails(Frozen):
    """Hold the evidence for a principle."""

    runs: int = Field(0, ge=0, description="runs of the scope that it was judged by")
    good: int = Field(0, ge=0, description="of them those within a fifth of the best quality")
    outside: int = Field(0, ge=0, description="runs that break the rule")
    against: tuple[str, ...] = Field((), description="good runs that break it")
    p_value: float = Field(1.0, ge=0, le=1, description="of the claim, corrected for all rules that could be claimed")
    together: tuple[str, ...] = Field((), description="parameters that changed together with the rule's")
    pairs: int = Field(0, ge=0, description="pairs of runs that differ in the rule's parameter alone")


class Principle(Frozen):
    """State a rule that good runs follow: hardly any run that breaks it is good."""

    uid: uuid.UUID
    rule: str = Field(description="as a hard limit reads: network_dim <= 32")
    support: int = Field(ge=0, description="good runs that keep it")
    exceptions: int = Field(ge=0, description="good runs that break it")
    scope: dict[str, str] = Field(description="base_model and dataset that it holds for")
    evidence: Evidence = Evidence.OBSERVED
    state: PrincipleState = PrincipleState.PROPOSED
    details: PrincipleDetails = PrincipleDetails()
    created_at: datetime

    @property
    def sentence(self) -> str:
        """Return the claim with its counts: 'network_dim <= 32 in 9 of 9 good runs; 0 of 6 others are good'."""
        details = self.details
        also = f" (or {' or '.join(details.together)}, which changed together)" if details.together else ""
        return (
            f"{self.rule}{also} in {self.support} of {details.good} good runs; {self.exceptions} of {details.outside} "
            f"others are good"
        )


class Analysis(Frozen):
    """Record what the analysis found after a trial."""

    campaign: str
    n_runs: int
    effects: tuple[ParameterEffect, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    created_at: datetime
