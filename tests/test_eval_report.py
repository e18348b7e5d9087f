"""The report of runs: what it shows, that it needs nothing else, and what it says where something is missing."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval import report_page
from eval import report_sections as sections
from eval.detection import evaluate_detections
from eval.report import main
from eval.report_data import (
    Judged,
    density,
    differences,
    groups_of,
    name_runs,
    open_data,
    read_run,
    read_scalars,
    runs_of,
    video_ap,
)
from eval.report_page import Raw, curves, embed, story, table, text
from tests import tiny
from tests.changes import train
from tests.outcome import outcome, refused
from utils.run.experiment import Board
from utils.segments import Segments

NASTY = ("<script>alert(1)</script>", "a & $b_{c}$")


class Page(HTMLParser):
    """A page: its elements, its text, and that what is opened is closed."""

    def __init__(self, source: str):
        super().__init__()
        self.source, self.open, self.tags, self.said, self.links = source, [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.open += [] if name in ("meta", "br", "img") else [name]
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data", "action")]

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name, name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    def needs_nothing(self):
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in self.links), self.links
        assert all(f'id="{link[1:]}"' in self.source for link in self.links if link.startswith("#"))
        assert not {"script", "link", "iframe", "object", "embed"} & set(self.tags)
        assert "url(http" not in self.source and "@import" not in self.source
        assert len(self.source.encode()) < 5_000_000
        return self


def report(out: Path, *words) -> Page:
    found = outcome(main, [*words, "--out", out])
    assert found.status == 0, found.log
    assert str(out) in found.out
    return Page(out.read_text(encoding="utf-8")).needs_nothing()


def copied(run: Path, place: Path, options=None, **results) -> Path:
    """A copy of a run with other options and other AP of its classes."""
    shutil.copytree(run, place)
    change(place / "options.json", lambda v: v.update(options or {}))
    change(place / "results.json", lambda v: [m["AP"].update(results) for m in v.values()])
    return place


def change(path: Path, how) -> None:
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def test_a_run_is_shown_whole(sound, tmp_path):
    run = sound.place / "run"
    page = report(tmp_path / "r.html", run, "--videos", "video_04")
    results, options = (json.loads((run / f"{name}.json").read_text()) for name in ("results", "options"))
    for metrics in results.values():
        assert all(percent(x) in page.text for x in [*metrics["mAP"], *metrics["average"].values()])
    assert all(percent(x) in page.text for ap in results["last"]["AP"].values() for x in ap)
    for words in ("What was run", "Results", "Over the epochs", "Classes", "Diagnosis", "Timelines", "loss_total"):
        assert words in page.text
    assert "--batch_size" in page.text and options["dataset_root"] in page.text and "release" in page.text
    assert page.text.count("protocol exact") >= 5 and "SIMULATED" not in page.text and "missing" not in page.text
    assert "video_04" in page.text and "the best of 2 videos" in page.text and "the worst of 2 videos" in page.text
    assert "attention" in page.text and "s_pc" in page.text and "lost by proposals" in page.text
    assert page.tags.count("svg") + page.tags.count("img") >= 20


def test_names_are_text_and_simulated_features_are_named_everywhere(tmp_path, hurried, monkeypatch):
    monkeypatch.setattr(sections, "over_epochs", lambda groups: None)  # takes the most time, and names no class
    root = tiny.write(tmp_path / "tiny", videos=6, classes=NASTY)
    (root / "SIMULATED.txt").write_text("drawn\n")
    assert train(root, tmp_path).status == 0
    page = report(tmp_path / "r.html", tmp_path / "run")
    assert all(name in page.text for name in NASTY) and r"\$" not in page.text
    assert page.text.count("SIMULATED features") >= 5
    found = Segments(NASTY, NASTY, np.zeros(1, int), np.array([[1.0, 2.0]]), np.zeros(1, int), np.ones(1))
    judged = Judged(found.segment_s, np.ones(1), np.ones(1), np.ones((1, 2)), True)
    drawn = Page(embed(story(NASTY[0], None, found, 3.0, judged), "x", NASTY[0]))
    assert "script" not in drawn.tags and NASTY[0][:20] in drawn.text
    monkeypatch.setattr(report_page, "LARGEST_SVG", 10_000)
    figure = curves("noise", [("noise", pd.Series(np.random.default_rng(0).random(9999)), "red")])
    assert Page(embed(figure, "y", NASTY[0])).needs_nothing().tags == ["figure", "img"]
    assert text("<\x1b") == "&lt;\\x1b" and text(Raw("<b>")) == "<b>"
    assert "<i>" not in table(["<i>", "<i>"], [["<i>", "<i>"]]) and "x" * 99 in table(["", "a"], [["", "x" * 99]])


def test_runs_are_compared_seed_by_seed(sound, tmp_path):
    run, classes = sound.place / "run", sound.results["AP"]
    thresholds = len(sound.results["tiou"])
    ap = {("base", 0): (0.1, 0.5), ("base", 1): (0.3, 0.2), ("more", 0): (0.4, 0.4), ("more", 1): (0.5, 0.2)}
    for (name, seed), values in ap.items():
        options = {"seed": seed, "losses": [] if name == "base" else ["pc"]}
        given = dict(zip(classes, ([v] * thresholds for v in values)))
        copied(run, tmp_path / name / f"seed{seed}", options, **given)
    runs = runs_of(tmp_path / "base") + runs_of(tmp_path / "more")
    name_runs(runs)
    groups = groups_of(runs)
    assert {name: [r.name for r in group] for name, group in groups.items()} == {
        "base": ["base/seed0", "base/seed1"],
        "more": ["more/seed0", "more/seed1"],
    }
    found, why = differences(groups)
    assert not why and list(found["more"].index) == ["seed 0", "seed 1"]
    np.testing.assert_allclose(found["more"].to_numpy(), [[0.3, -0.1], [0.2, 0.0]], atol=1e-12)
    page = Page(sections.classes(groups, {}))
    mean, deviation = (0.3 + 0.2) / 2, abs(0.3 - 0.2) / np.sqrt(2)
    assert f"+{percent(mean)} {percent(deviation)} +30.00 +20.00" in page.text
    assert "+10.00 0.00 +10.00 +10.00" in page.text, "the mean over classes, by seed"
    assert "more less base: +10.00" in page.text
    assert "more is ahead in 1 of 2 classes, behind in 1" in page.text
    results = Page(sections.results(groups)).text
    assert "base, last: mean of 2 seeds ± sd" in results and percent(sound.results["mAP"][0]) in results
    alone = Page(sections.classes({"base": groups["base"]}, {})).text
    assert "base/seed1 less base/seed0" in alone and "+20.00" in alone
    change(tmp_path / "more" / "seed0" / "results.json", lambda v: v["last"].update(protocol="wtal"))
    other = read_run(tmp_path / "more" / "seed0")
    assert differences({"a": groups["base"][:1], "b": [other]})[1]


def test_published_numbers_stand_where_they_can_be_compared(sound, tmp_path):
    thumos = copied(sound.place / "run", tmp_path / "thumos", {"dataset_name": "Thumos14reduced"})
    page = Page(sections.results({"thumos": [read_run(thumos)]}))
    for words in ("SEAL, paper (AAAI 2025), wtal 63.70 43.50 52.80 78.40", "55.20", "point labels", "protocol exact"):
        assert words in page.text
    assert page.source.count('<tr class="published">') == 2 and "\\n" not in page.text
    change(thumos / "results.json", lambda v: [m.update(simulated=True) for m in v.values()])
    assert "SEAL, paper" not in Page(sections.results({"thumos": [read_run(thumos)]})).text


def test_what_is_missing_is_said_and_the_rest_is_shown(sound, tmp_path, hurried):
    lost = copied(sound.place / "run", tmp_path / "lost", {"dataset_root": str(tmp_path / "nowhere")})
    shutil.rmtree(lost / "logs")
    page = report(tmp_path / "r.html", lost)
    assert "no such dataset folder" in page.text and "no curves" in page.text and "Diagnosis" not in page.text
    assert percent(sound.results["mAP"][0]) in page.text and "Counts need the annotations" in page.text
    assert "detections" in page.text and "Timelines" in page.text
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(lost / "options.json", begun)
    page = report(tmp_path / "r.html", begun, "--dataset_root", sound.root)
    assert "nothing has been evaluated" in page.text and "Results" not in page.text
    assert "--batch_size" in page.text and "Timelines" not in page.text


def test_a_test_of_a_checkpoint_and_a_damaged_file(sound, tmp_path, hurried):
    checkpoint = sound.place / "run" / "ckpt" / "last_model.pkl"
    words = ("--run_type", "test", "--pretrained_ckpt", checkpoint)
    assert train(sound.root, tmp_path, *words).status == 0
    run = read_run(tmp_path / "run")
    data = open_data(run)
    assert list(run.results) == ["last_model.pkl"] and not run.notes and len(data.truth.video) == 4
    (tmp_path / "run" / "detections.json").write_text("{")
    (tmp_path / "run" / "environment.json").write_text("[]")
    notes = read_run(tmp_path / "run").notes
    assert len(notes) == 2 and "environment.json" in notes[0] and "detections.json" in notes[1]


@pytest.mark.parametrize("options", [None, "{", "[]", '{"dataset_name": 3}'])
def test_a_folder_of_something_else_is_one_line(tmp_path, options):
    if options:
        (tmp_path / "options.json").write_text(options)
    refused(outcome(main, [tmp_path]), str(tmp_path))


def test_a_video_that_is_not_there_is_one_line(sound):
    refused(outcome(main, [sound.place / "run", "--videos", "no_such"]), "no video no_such", "video_0")


def test_densities_are_means_and_maxima_over_the_proposals_that_cover_a_moment():
    segment_s = np.array([[0.0, 4.0], [2.0, 6.0], [8.0, 8.0]])
    average, most = density(segment_s, np.array([0.2, 0.6, 1.0]), np.array([1.0, 3.0, 5.0, 7.0, 8.0]))
    np.testing.assert_allclose(average, [0.2, 0.4, 0.6, np.nan, 1.0])
    np.testing.assert_allclose(most, [0.2, 0.6, 0.6, np.nan, 1.0])


def test_the_ap_of_a_video_is_that_of_its_own_detections(sound):
    run = read_run(sound.place / "run")
    data = open_data(run)
    found = video_ap(data, "exact")
    for video, value in found.items():
        alone = evaluate_detections(data.truth.keep([video]), data.found.keep([video]), data.profile, "exact")
        assert value == pytest.approx(np.mean(list(alone["AP"].values())))
    assert found.is_monotonic_decreasing and set(found.index) == {"video_04", "video_05"}


def test_curves_of_a_resumed_run_have_one_value_an_epoch(tmp_path):
    for first, values in ((None, [1.0, 2.0, 3.0]), (2, [5.0, 6.0])):
        board = Board(tmp_path, first)
        for step, value in enumerate(values, first or 1):
            board.scalars({"x": value}, step, "loss")
        board.close()
    pd.testing.assert_series_equal(read_scalars(tmp_path)["loss/x"], pd.Series([1.0, 5.0, 6.0], [1, 2, 3]))
    assert read_scalars(tmp_path / "none") == {}
