from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from schema.runs import Outcome
from tasks.reports.markdown import campaign_note, trial_note
from tests.tasks.reports import factory


def tables(note: str) -> list[list[str]]:
    """Lines of each table of a note."""
    blocks = [block.splitlines() for block in note.split("\n\n")]
    return [block for block in blocks if block[0].startswith("|")]


def test_a_trial_note_tells_the_whole_story() -> None:
    history = factory.night()[0]
    note = trial_note(history.run, history.epochs)
    for text in (
        "# night-000: quality 66.0 at epoch 4, ok",
        "**run** (accepted, chance of failure 8 %). No known failure.",
        "Expected 50.0 (42.0 to 58.0) from 0 runs; it became 66.0: +16.0, not within 15 %.",
        "| 4 | 66.0 | 65.0 | 67.0 | 66.0 | 0.0500 |",
        "**wrong background** (severity 60 %, confidence 70 %)",
        "| network_dim | 16 |",
        "At kohya's defaults: `",
    ):
        assert text in note, text


def test_sections_without_content_are_left_out() -> None:
    history = factory.history(0, (), outcome=None)
    note = trial_note(history.run, history.epochs)
    assert note.startswith("# night-000: running\n")
    for heading in ("Gate", "Prediction", "Epochs", "Diagnosis", "Next steps"):
        assert f"## {heading}" not in note


def test_a_failure_stands_at_the_top() -> None:
    history = factory.night()[3]
    note = trial_note(history.run, history.epochs)
    assert note.split("\n\n")[1] == "**The loss left the finite range at step 412.**"


def test_text_from_the_data_breaks_neither_table_nor_page() -> None:
    nasty = "a | b\n<script>x</script>"
    history = factory.history(
        0,
        (50.0,),
        {"caption_version": nasty},
        Outcome.CRASHED,
        failure=nasty,
        root_cause_diagnosis=(factory.diagnosis(cause=nasty),),
    )
    note = trial_note(history.run, history.epochs)
    assert "<script" not in note
    for table in tables(note):
        columns = {line.replace(r"\|", "").count("|") for line in table}
        assert len(columns) == 1


def test_the_campaign_note_ranks_and_says_what_to_run_next() -> None:
    note = campaign_note(factory.night(), factory.analysis(), factory.ledger(factory.refusal(6)), factory.base_model())
    assert "6 runs, 2 failed; best **night-001** at 78.2." in note
    assert "Gate: 1 proposal refused (1 known failure)." in note
    board, effects = tables(note)
    assert board[2].startswith("| 1 | night-001 | 78.2 | 3 | ok |")
    assert "base model" in board[-1]
    assert "| tested |" in effects[3]
    assert "1. `network_dim=8` (proposed)" in note
    assert "proposal 6 (known failure): 3 of 3 runs" in note


def test_a_new_campaign_has_a_short_note() -> None:
    note = campaign_note([], factory.analysis(effects=(), hypotheses=(), n_runs=0), factory.ledger())
    assert "0 runs, 0 failed; none measured yet." in note
    assert "##" not in note


MARKUP = st.text(st.sampled_from("<>[]()!`*|\\#&:/_~ \n\"'ajx"), min_size=1, max_size=30)
HARMFUL = {"link_open", "image", "html_inline", "html_block", "fence", "code_block"}


def shown(note: str) -> tuple[set[str], str]:
    """Kinds of what a Markdown renderer finds in a note's lines, and all text that a reader sees."""
    kinds, texts = set[str](), list[str]()
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(note):
        for child in token.children or [token]:
            kinds.add(child.type)
            texts.append(child.content)
    return kinds, " ".join(texts)


@given(MARKUP)
@example("[x](javascript:alert(1))")
@example("![x](http://127.0.0.1/a.png)")
@example("<img src=x onerror=alert(1)>")
@example("</textarea><script>alert(1)</script>")
@example("`</code>`` <b>")
@example("\\[x](javascript:alert(1))")
@example("<javascript:alert(1)>")
def test_no_text_of_the_data_becomes_a_link_a_picture_or_a_tag(nasty: str) -> None:
    history = factory.history(
        0,
        (50.0,),
        {"caption_version": nasty, "optimizer_args": nasty},
        Outcome.CRASHED,
        run_name=nasty,
        failure=nasty,
        recommended_next_steps=(nasty,),
        root_cause_diagnosis=(factory.diagnosis(cause=nasty),),
        verdict=factory.verdict(reason=nasty),
    )
    refused = factory.refusal(6, verdict=factory.verdict(reason=nasty))
    analysis = factory.analysis(hypotheses=(factory.hypothesis(1, {"caption_version": nasty}, rationale=nasty),))
    for note in (trial_note(history.run, history.epochs), campaign_note([history], analysis, factory.ledger(refused))):
        assert not shown(note)[0] & HARMFUL


def test_what_is_escaped_reads_as_it_was() -> None:
    nasty = r"the caption is [x](javascript:1) *a* `b` \ <b>"
    history = factory.history(0, (50.0,), {}, Outcome.CRASHED, failure=nasty)
    assert nasty in shown(trial_note(history.run, history.epochs))[1]
