"""Sample sheets, notes and charts in optuna-dashboard.

A picture can only be attached while its trial runs: Optuna closes finished trials. Notes and charts
belong to the study, so they may be written at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schema.errors import NotFoundError, StoreError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.artifacts import FileSystemArtifactStore

logger = logging.getLogger(__name__)

_MAX_FIGURE = 200_000
"""Characters; the dashboard keeps a chart in pieces of 2045 and sends all of them with each page."""


def attach_sheet(study: Study, number: int, artifact_dir: Path, sheet: Path) -> str:
    """Show a sample sheet at a running trial.

    A sheet of the same file name is replaced and keeps its id, so a replayed epoch changes nothing.

    Args:
        study: the campaign's study.
        number: number of the trial.
        artifact_dir: folder the dashboard serves pictures from; made if missing.
        sheet: the picture; its file name tells the epoch.

    Returns:
        Id of the artifact.

    Raises:
        NotFoundError: no such trial or no such file.
        StoreError: the trial is finished and has no sheet of this name.
    """
    from optuna.artifacts import upload_artifact
    from optuna.exceptions import UpdateFinishedTrialError

    if not sheet.is_file():
        raise NotFoundError(f"sample sheet {sheet} does not exist: draw the epoch before it is attached")
    trial, store = _trial(study, number), _artifacts(artifact_dir)
    known = _sheets(trial).get(sheet.name)
    if known is not None:  # also mends a process killed between the record and its file
        with sheet.open("rb") as file:
            store.write(known, file)
        return known
    try:
        return upload_artifact(artifact_store=store, file_path=str(sheet), study_or_trial=trial)
    except UpdateFinishedTrialError:
        raise StoreError(f"trial {number} is finished, so {sheet.name} cannot be attached: attach it earlier") from None


def annotate_trial(study: Study, number: int, artifact_dir: Path, note: str, sheets: Sequence[Path] = ()) -> None:
    """Write a trial's note, with its newest sample sheet on top; running and finished trials alike.

    Args:
        study: the campaign's study.
        number: number of the trial.
        artifact_dir: folder the dashboard serves pictures from.
        note: Markdown; it replaces an earlier note.
        sheets: sample sheets to attach first, while the trial runs.

    Raises:
        NotFoundError: no such trial or no such sheet.
        StoreError: a sheet is new but the trial is finished.
    """
    from optuna_dashboard import save_note
    from optuna_dashboard.artifact import get_artifact_path

    for sheet in sheets:
        attach_sheet(study, number, artifact_dir, sheet)
    trial = _trial(study, number)
    attached = _sheets(trial)
    picture = ""
    if attached:
        newest = max(attached)
        picture = f"![{newest}]({get_artifact_path(trial, attached[newest])})\n\n"
    save_note(trial, picture + note)


def annotate_study(study: Study, note: str, figures: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write the study's note and its charts; both replace what was there.

    Args:
        study: the campaign's study.
        note: Markdown.
        figures: plotly figures (data and layout) by an id of letters, digits and hyphens. One that
            is too large for the dashboard is left out with a warning.
    """
    from optuna_dashboard import save_note, save_plotly_graph_object
    from plotly.graph_objects import Figure

    save_note(study, note)
    for name, figure in (figures or {}).items():
        size = len(json.dumps(figure))
        if size > _MAX_FIGURE:
            logger.warning("chart %s is left out of the dashboard: %d characters, at most %d", name, size, _MAX_FIGURE)
            continue
        # a bare template: plotly's own is longer than the chart
        chart = Figure(figure).update_layout(template="none", title_text=name.replace("-", " "), margin_t=50)
        save_plotly_graph_object(study, chart, graph_object_id=name)


def _trial(study: Study, number: int) -> Trial:
    from optuna import Trial

    for trial in study.get_trials(deepcopy=False):
        if trial.number == number:
            return Trial(study, trial._trial_id)
    raise NotFoundError(f"study {study.study_name} has no trial {number}")


def _sheets(trial: Trial) -> dict[str, str]:
    """Ids of the attached pictures by file name."""
    from optuna.artifacts import get_all_artifact_meta

    metas = get_all_artifact_meta(study_or_trial=trial)
    return {meta.filename: meta.artifact_id for meta in metas if meta.mimetype.startswith("image/")}


def _artifacts(folder: Path) -> FileSystemArtifactStore:
    from optuna.artifacts import FileSystemArtifactStore

    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)
