"""Timelines: what can be read on them, whatever the video."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from utils.run.plots import class_colour, figure_to_array, timeline
from utils.segments import Segments

CLASSES = ("HighJump", "PoleVault", "CliffDiving")


def segments(segment_s, label, score=None, classes=CLASSES, video="v") -> Segments:
    """Segments of one video."""
    segment_s = np.asarray(segment_s, dtype=np.float64).reshape(-1, 2)
    score = None if score is None else np.asarray(score, dtype=np.float64)
    place = np.zeros(len(segment_s), dtype=np.int64)
    return Segments(tuple(classes), (video,), place, segment_s, np.asarray(label, dtype=np.int64), score)


TRUTH = segments([[2.0, 8.0], [20.0, 26.0]], [0, 2])
FOUND = segments([[2.5, 7.5], [21.0, 30.0], [40.0, 40.2]], [0, 2, 1], [0.9, 0.3, 0.1])
NO_TRUTH, NOT_FOUND = segments([], []), segments([], [], [])


def legend(figure) -> list:
    return [text.get_text() for group in figure.legends for text in group.get_texts()]


def texts(figure) -> list:
    (axes,) = figure.axes
    return [t.get_text() for t in [*axes.texts, axes.title, axes.xaxis.label, *axes.get_yticklabels()]]


def bars(figure) -> list:
    """(start, end) of every bar as drawn, in seconds."""
    return [(p.get_x(), p.get_x() + p.get_width()) for p in figure.axes[0].patches]


def test_a_timeline_names_what_it_shows_and_draws_it_where_it_is():
    figure = timeline("v", TRUTH, FOUND, 50.0, most=2)
    assert {"v", "seconds", "ground truth", "detections\nbest 2 of 3", "0.90", "0.30"} <= set(texts(figure))
    assert legend(figure) == ["HighJump", "CliffDiving"]  # the detection of a PoleVault is not among the best two
    drawn = [*TRUTH.segment_s, *FOUND.segment_s[:2]]
    assert all(any(np.allclose(segment, bar) for bar in bars(figure)) for segment in drawn)
    assert not any(np.allclose(FOUND.segment_s[2], bar) for bar in bars(figure))
    assert legend(timeline("v", TRUTH, FOUND, 50.0)) == list(CLASSES)


def test_a_better_score_is_more_opaque():
    patches = timeline("v", TRUTH, FOUND, 50.0).axes[0].patches[-5::2]
    alphas = [patch.get_facecolor()[3] for patch in patches]
    assert alphas == sorted(alphas, reverse=True) and alphas[0] == 1 and alphas[-1] < 0.3


def test_detections_that_overlap_lie_in_different_lanes_and_others_share_one():
    figure = timeline("v", NO_TRUTH, segments([[0, 10], [5, 15], [20, 30]], [0] * 3, [0.9, 0.8, 0.7]), 40.0)
    first, second, third = (patch.get_y() for patch in figure.axes[0].patches[-5::2])
    assert first != second and first == third


@pytest.mark.parametrize("duration_s", [float("nan"), 0.0, 12.5])
def test_a_video_with_nothing_at_all_is_drawn_and_says_so(duration_s):
    figure = timeline("v", NO_TRUTH, NOT_FOUND, duration_s)
    assert {"no instance", "no detection"} <= set(texts(figure)) and not legend(figure)
    assert figure_to_array(figure).ndim == 3
    assert not {"no instance", "no detection"} & set(texts(timeline("v", TRUTH, FOUND, 50.0)))


@pytest.mark.parametrize("duration_s, end_s", [(50.0, 50.0), (5.0, FOUND.segment_s.max())])
def test_the_axis_reaches_to_the_end_and_to_what_lies_beyond(duration_s, end_s):
    assert timeline("v", TRUTH, FOUND, duration_s).axes[0].get_xlim() == (0.0, end_s)


def test_two_hundred_classes_and_a_long_video_make_a_picture_of_bounded_size():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 7000, 40)
    times = np.stack([start, start + rng.uniform(0.1, 60, 40)], axis=1)
    classes = [f"Applying sunscreen {i}" for i in range(200)]
    truth, found = (segments(times, np.arange(40) * 5, score, classes) for score in (None, start))
    figure = timeline("v", truth, found, 7200.0)
    height, width, _ = figure_to_array(figure).shape
    assert width == 1100 and height < 1200 and legend(figure) == classes[::5]


def test_the_array_is_rgb_and_the_same_every_time():
    first, second = (figure_to_array(timeline("v", TRUTH, FOUND, 50.0)) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape[2] == 3 and first.flags["C_CONTIGUOUS"]
    assert (first == 255).all(axis=2).mean() > 0.3  # paper
    rgb = [round(255 * c) for c in class_colour(0)]
    assert (first == rgb).all(axis=2).sum() > 500  # the bars of the first class
    np.testing.assert_array_equal(first, second)


def test_a_class_has_one_colour_in_every_picture_and_classes_differ():
    colours = [class_colour(i) for i in range(200)]
    assert len(set(colours)) == 200 and all(0 <= c <= 1 for colour in colours for c in colour)
    alone = timeline("v", segments(TRUTH.segment_s[1:], [2]), NOT_FOUND, 50.0)
    assert alone.legends[0].get_patches()[0].get_facecolor()[:3] == class_colour(2)


@pytest.mark.parametrize("name", ["a$b$_{c", "two\nlines", "_private", "x" * 300, "动作", "\x00"])
def test_any_name_can_be_drawn(name):
    classes = (name, *CLASSES)
    truth = segments(TRUTH.segment_s, TRUTH.label, None, classes, name)
    figure = timeline(name, truth, segments(FOUND.segment_s, FOUND.label, FOUND.score, classes, name), 50.0)
    assert figure_to_array(figure).size and len(legend(figure)) == 3


def test_importing_draws_in_no_matplotlib_and_drawing_no_pyplot():
    code = (
        "import sys, utils.run.plots as p; assert 'matplotlib' not in sys.modules; import tests.test_plots as t;"
        "p.figure_to_array(p.timeline('v', t.TRUTH, t.FOUND, 1.0)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
