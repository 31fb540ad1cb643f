"""Decide whether a proposal may run. Every refusal gives a reason that a person can check."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from optimizer.history import failed, how_it_ended, informative
from optimizer.search.failure_regions import failure_region
from optimizer.search.space import Space
from schema.campaign import GateSettings
from schema.findings import Decision, GateVerdict, Prediction
from schema.parameters import ParameterValue
from schema.runs import RunHistory
from schema.states import GateRule


class Gate:
    """Judge proposals. Each one is judged on its own; the gate keeps no state."""

    def __init__(self, settings: GateSettings, space: Space, seed: int) -> None:
        self._settings = settings
        self._space = space
        self._seed = seed

    def judge(
        self,
        parameters: Mapping[str, ParameterValue],
        prediction: Prediction,
        history: Sequence[RunHistory],
        number: int,
        skips_in_a_row: int,
    ) -> GateVerdict:
        """Decide whether a proposal runs.

        The first reason that applies refuses it: it breaks a hard rule; the same training was run already, well or
        badly; it lies in a region where every run failed; the surrogate predicts a failure. A share of the last two
        kinds runs anyway as an audit, to measure how often the gate is wrong. After too many refusals in a row
        the next proposal runs as well. Only hard rules are never overruled.

        Args:
            parameters: Full setting.
            prediction: Prediction of the surrogate.
            history: Runs on the same base model and data set (see `optimizer.history.related`).
            number: Number of the proposal. Together with the seed it decides whether this one is an audit.
            skips_in_a_row: Refusals directly before this proposal.
        """
        # Hard rules apply even if the gate is switched off.
        broken = self._space.violations(parameters)
        if broken:
            return _verdict(Decision.SKIP, GateRule.HARD_RULE, "; ".join(broken), prediction)
        refusal = self._refusal(parameters, prediction, history) if self._settings.enabled else None
        if refusal is None:
            return _verdict(Decision.RUN, GateRule.ACCEPTED, self._acceptance(prediction, history), prediction)
        if skips_in_a_row >= self._settings.max_skips_in_a_row:
            reason = f"{skips_in_a_row} proposals in a row were refused, so this one runs although {refusal.reason}"
            return refusal.changed(decision=Decision.RUN, rule=GateRule.LEAST_BAD, reason=reason)
        # Running a known training again would not check the gate, only repeat the result.
        if self._is_audit(number) and not self._is_known(parameters, history):
            return refusal.changed(
                decision=Decision.RUN, rule=GateRule.AUDIT, reason=f"runs to check the gate, although {refusal.reason}"
            )
        return refusal

    def _refusal(
        self, parameters: Mapping[str, ParameterValue], prediction: Prediction, history: Sequence[RunHistory]
    ) -> GateVerdict | None:
        """Return the refusal that past runs or the prediction call for; None if there is none."""
        duplicate = self._duplicate(parameters, history)
        if duplicate is not None:
            rule = GateRule.KNOWN_FAILURE if failed(duplicate, self._space.failed_quality) else GateRule.KNOWN_RESULT
            reason = f"{duplicate.run.run_name} was the same training and ended: {how_it_ended(duplicate)}"
            return _verdict(Decision.SKIP, rule, reason, prediction, (duplicate.run.run_name,))
        region = failure_region(parameters, history, self._space)
        if region is not None:
            names = tuple(run.run.run_name for run in region.runs)
            return _verdict(Decision.SKIP, GateRule.KNOWN_FAILURE, region.reason(), prediction, names)
        runs = _runs_behind(prediction, history)
        if runs >= self._settings.min_runs and prediction.p_fail > self._limit(runs):
            return _verdict(
                Decision.SKIP,
                GateRule.PREDICTED_FAILURE,
                _failure_reason(prediction, history),
                prediction,
                prediction.nearest,
            )
        return None

    def _limit(self, runs: float) -> float:
        """Return the risk above which a proposal is refused: up to twice `max_p_fail` while runs are few.

        Good settings lie close to the cliff, and a model of few runs places its edge too close to them. A constant
        limit of 0.45 refused 7.0 % of the best settings after 20 runs, this one 4.5 % (benchmarks/RESULTS.md).
        """
        few = self._settings.min_runs / (self._settings.min_runs + runs)
        return self._settings.max_p_fail * (1 + few)

    def _duplicate(self, parameters: Mapping[str, ParameterValue], history: Sequence[RunHistory]) -> RunHistory | None:
        wanted = self._space.key(parameters)
        return next((h for h in informative(history) if self._space.key(h.run.all_parameters) == wanted), None)

    def _is_known(self, parameters: Mapping[str, ParameterValue], history: Sequence[RunHistory]) -> bool:
        return self._duplicate(parameters, history) is not None

    def _is_audit(self, number: int) -> bool:
        # A function of seed and number, so that a restarted campaign audits the same proposals.
        return random.Random(f"{self._seed}/{number}").random() < self._settings.audit_share

    def _acceptance(self, prediction: Prediction, history: Sequence[RunHistory]) -> str:
        runs = _runs_behind(prediction, history)
        if not self._settings.enabled:
            return "the gate is switched off"
        if runs < self._settings.min_runs:
            return f"only {runs:g} of the {self._settings.min_runs} runs are done that a prediction of failure needs"
        return f"{prediction.p_fail:.0%} risk of failure, from {prediction.n} runs"


def _runs_behind(prediction: Prediction, history: Sequence[RunHistory]) -> float:
    """Return the number of runs behind a prediction of failure. Runs on other models or data count less."""
    return len(informative(history)) if prediction.worth is None else prediction.worth


def _verdict(
    decision: Decision, rule: GateRule, reason: str, prediction: Prediction, evidence: tuple[str, ...] = ()
) -> GateVerdict:
    return GateVerdict(decision=decision, reason=reason, rule=rule, evidence=evidence, p_fail=prediction.p_fail)


def _failure_reason(prediction: Prediction, history: Sequence[RunHistory]) -> str:
    ends = {h.run.run_name: how_it_ended(h) for h in history}
    near = ", ".join(f"{name} ({ends[name]})" for name in prediction.nearest if name in ends)
    similar = f"; most similar: {near}" if near else ""
    return f"it fails with a probability of {prediction.p_fail:.0%}, judged from {prediction.n} runs{similar}"
