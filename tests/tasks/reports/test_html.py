from __future__ import annotations

import base64
import io
import uuid
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from schema.findings import Principle, PrincipleDetails
from schema.runs import RunHistory
from tasks.reports.html import write_report
from tests.tasks.reports import factory
from tests.tasks.reports.page import Page

PRINCIPLE = Principle(
    uid=uuid.UUID(int=1), rule="network_dim <= 32", support=9, exceptions=0, scope={}, created_at=factory.START,
    details=PrincipleDetails(runs=15, good=9, outside=6),
)  # fmt: skip


def write(folder: Path, history: list[RunHistory], name: str = "report.html") -> Page:
    ledger = factory.ledger(
        factory.refusal(6),
        factory.refusal(9),
        audited=("night-002", "night-004"),
        wrong=("night-004",),
        hours_saved=1.5,
    )
    base = factory.base_model(folder)
    path = write_report(folder / name, "night", history, factory.analysis(), ledger, base, folder, [PRINCIPLE])
    assert path == folder / name
    return Page(path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("home")
    return write(folder, factory.night(folder))


def test_the_file_needs_nothing_from_outside(page: Page) -> None:
    assert page.all("img")
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "data", "action", "poster"):
            if name in attributes:
                assert tag == "img"
                assert attributes[name].startswith("data:image/png;base64,")
        if "href" in attributes:
            assert attributes["href"].startswith("#") or attributes["href"] == "data:,"
    assert not page.all("iframe")


def test_every_run_has_a_section_and_links_lead_to_something(page: Page) -> None:
    runs = [attributes["id"] for attributes in page.all("details") if "id" in attributes]
    assert runs == [f"run-night-00{n}" for n in (1, 0, 4, 2, 3, 5)]
    assert len(page.ids) == len(set(page.ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in page.ids


def test_headline_and_findings_are_told(page: Page) -> None:
    for text in (
        "78.2", "+55.8 by the LoRA", "4 h 30 min", "The loss left the finite range at step 412.",
        "3 of 3 runs with network_dim >= 64 failed: photorealistic.", "none detected", "tested", "network_dim=8",
        "3 of 4 within 15 % of the result; 3 of 4 inside their interval.", "photorealistic in 2 runs", "< 0.001",
        "Found: noisy palette", "network_dim <= 32 in 9 of 9 good runs; 0 of 6 others are good",
        "runs/night/001/checkpoints/e3.safetensors",
        "2 proposals refused (2 known failure), about 1 h 30 min saved; "
        "2 run all the same to check the gate: 1 did well (night-004).",
    ):  # fmt: skip
        assert text in " ".join(page.text.split()), text


def test_each_cause_of_an_issue_stands_with_its_own_runs(tmp_path: Path) -> None:
    ranks = {"cause": "network_dim = 128", "recommendation": "lower it"}
    normal = factory.diagnosis("blurred", normal_for_epoch=True)
    told = [
        (factory.diagnosis(**ranks, confidence=0.6),), (factory.diagnosis(), normal),
        (factory.diagnosis(**ranks, confidence=0.6),),
    ]  # fmt: skip
    runs = [factory.history(n, (50.0,), root_cause_diagnosis=found) for n, found in enumerate(told)]
    text = " ".join(write(tmp_path, runs).text.split())
    assert "wrong background in 3 runs night-001: Background and hair" in text
    assert "night-000, night-002: network_dim = 128 (60 % sure) → lower it" in text
    assert "blurred in" not in text


def test_sheets_are_whole_pictures_with_their_size(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 1 + 5 + (5 + 5 + 3 + 2)  # the base model, the best run, and each other run in its section
    for image in images:
        decoded = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert decoded.size == (int(image["width"]), int(image["height"]))
        assert image["alt"]


def test_curves_hold_all_measured_runs_and_the_base_model(page: Page) -> None:
    lines = {line["name"]: line for line in page.figures["curves"]["data"]}
    assert set(lines) == {*(f"night-00{n}" for n in range(5)), "base model"}
    assert lines["night-001"]["y"] == [44, 62, 78.25, 75, 70]
    assert lines["night-004"]["x"] == [1, 2, 3, 4]  # its fifth epoch could not be measured
    assert lines["night-003"]["line"]["dash"] == "dash"
    assert lines["night-001"]["line"]["width"] > lines["night-000"]["line"]["width"]


def test_the_best_runs_measures_are_followed_over_its_epochs(page: Page) -> None:
    lines = {line["name"]: line for line in page.figures["measures"]["data"]}
    assert {"colour", "style", "pixel-art purity", "photorealism"} <= set(lines)
    assert all(line["x"] == [1, 2, 3, 4, 5] for line in lines.values())
    assert page.text.count("Measures over the epochs") == 5  # a sixth run has no measured epoch


def test_each_varied_parameter_is_drawn_against_quality(page: Page) -> None:
    places = [attributes["data-figure"] for _, attributes in page.tags if "data-figure" in attributes]
    assert sorted(places) == sorted(page.figures)
    scatter = page.figures["scatter-learning_rate"]
    assert scatter["layout"]["xaxis"]["type"] == "log"
    good, failed = scatter["data"]
    assert sorted(good["x"]) == [1e-4, 2e-4, 3e-4, 4e-4]
    assert list(zip(failed["x"], failed["y"], strict=True)) == [(1e-3, 18.0), (2e-4, 0.0)]


def test_categories_are_drawn_as_categories(tmp_path: Path) -> None:
    night = [
        factory.history(0, (50.0,), {"shuffle_caption": True, "lr_scheduler": "cosine"}),
        factory.history(1, (60.0,), {"shuffle_caption": False, "lr_scheduler": "linear"}),
    ]
    figures = write(tmp_path, night).figures
    assert figures["scatter-shuffle_caption"]["data"][0]["x"] == ["false", "true"]
    assert figures["scatter-lr_scheduler"]["layout"]["xaxis"]["type"] == "category"


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    night = factory.night(tmp_path)
    write(tmp_path, night, "a.html")
    write(tmp_path, night[::-1], "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_missing_and_broken_sheets_do_not_break_the_report(tmp_path: Path) -> None:
    night = factory.night(tmp_path)
    gone, broken = (tmp_path / str(epoch.sample_sheet) for epoch in night[1].epochs[:2])
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:300])
    page = write(tmp_path, night)
    assert page.text.count("no picture at") == 2
    assert len(page.all("img")) == 21 - 2


def test_of_many_runs_only_the_best_and_the_newest_have_pictures(tmp_path: Path) -> None:
    night = [factory.history(n, (30.0, 50.0 - n / 10), home=tmp_path) for n in range(60)]
    page = write(tmp_path, night)
    assert len(page.all("img")) == (12 + 8) * 2 + 1  # the base model
    assert page.text.count("open the sheet") == (60 - 12 - 8) * 2
    links = [a["href"] for a in page.all("a") if a["href"].startswith("runs")]
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_a_large_sheet_is_shrunk(tmp_path: Path) -> None:
    night = [factory.history(0, (50.0,), home=tmp_path)]
    Image.new("RGB", (4000, 1000), "#2fa84f").save(tmp_path / str(night[0].epochs[0].sample_sheet))
    assert max(int(image["width"]) for image in write(tmp_path, night).all("img")) == 1600


def test_nothing_from_the_data_becomes_html(tmp_path: Path) -> None:
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    night = [
        factory.history(
            0, (50.0,), run_name=evil, failure=evil, best_checkpoint=evil, recommended_next_steps=(evil,),
            root_cause_diagnosis=(factory.diagnosis(evil, cause=evil),), verdict=factory.verdict(reason=evil),
            all_parameters={"caption_version": evil},
        ),
        factory.history(1, (40.0,), all_parameters={"caption_version": "'\"><b>"}),
    ]  # fmt: skip
    page = write(tmp_path, night)
    assert len(page.scripts) == 3
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert not page.all("b") or evil in page.text
    assert page.figures["curves"]["data"][0]["name"] == evil


def test_a_campaign_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    empty = factory.analysis(effects=(), hypotheses=(), n_runs=0)
    page = Page(write_report(tmp_path / "new" / "report.html", "night", [], empty, factory.ledger(), None, tmp_path))
    for text in ("No run has started yet.", "No epoch was measured yet.", "Nothing was refused."):
        assert text in page.text


def test_a_running_first_trial_and_only_failures_are_shown(tmp_path: Path) -> None:
    running = factory.history(0, (), outcome=None)
    assert "running" in write(tmp_path, [running], "running.html").text
    failed = write(tmp_path, [factory.night()[5]], "failed.html")
    assert "No run has a measured epoch yet." in failed.text
