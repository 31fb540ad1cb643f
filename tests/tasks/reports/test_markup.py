"""Pages and charts show the data's texts as texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schema.findings import ImpactReport
from tasks.reports.html import environment
from tasks.reports.impact import write_impact
from tests.tasks.reports import factory
from tests.tasks.reports.page import Page

EVIL = '</textarea></pre></title></script><script>alert("x")</script><img src=x onerror=alert(1)>\' onload="a()'
MARKUP = st.text(st.sampled_from("<>/\"'&=!-[]() abimgscrpt"), max_size=40)


def tags(page: Path) -> list[str]:
    return [tag for tag, _ in Page(page).tags]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@given(MARKUP)
@example(EVIL)
@example("<!-- ")
def test_a_caption_is_only_text_on_the_page_of_blind_votes(folder: Path, caption: str) -> None:
    def shown(text: str) -> Path:
        page = environment().get_template("blind.html.j2")
        (folder / "blind.html").write_text(page.render(number=0, caption=text, token="t", done=0, count=1))
        return folder / "blind.html"

    assert tags(shown("a caption")) == tags(shown(caption))
    assert " ".join(caption.split()) in " ".join(Page(shown(caption)).text.split())


@given(MARKUP)
@example(EVIL)
@settings(max_examples=20, deadline=None)
def test_the_impact_page_shows_names_as_text(folder: Path, name: str) -> None:
    def shown(text: str) -> Path:
        effect = factory.effect("network_dim", 5.0, best=text, importance=0.5, p_value=0.1)
        report = ImpactReport(n_runs=3, outcomes=("quality",), effects=(effect,), importance={text: 1.0})
        runs = [factory.history(n, (50.0,), all_parameters={text: n}, run_name=f"{text}{n}") for n in range(2)]
        return write_impact(folder, text, report, runs)[2]

    assert tags(shown("name")) == tags(shown(name))
