"""Numbers at their limits stay finite through the whole path: rows, training, detection, evaluation, classification.

The losses and the network have their own tests (test_losses_properties.py, test_model.py).
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.average_precision import Segments, average_precision
from eval.classification import accuracy, mean_average_precision
from eval.detection import evaluate_detections
from eval.detections import Detections
from eval.postprocess import candidates, detect, fuse, predicted_classes
from eval.soft_nms import soft_nms
from tests import tiny
from tests.changes import DURATION, FEATURES, all_of, array, document, hurry, results, train
from tests.outcome import read_scalars, refused
from utils.files import load_checkpoint
from utils.profile import GroundTruth, Profile
from utils.scfe import scfe_input

EXTREME = st.sampled_from([0.0, -0.0, 1e-300, 1.0, -1.0, 20.0, 1e4, -1e4, 88.8, -745.2])


# ---- the whole path


def every_feature(how):
    def change(root):
        for path in sorted((root / FEATURES).iterdir()):
            np.save(path, how(np.load(path)))

    return change


def every_proposal(how):
    def change(results):
        for entries in results["results"].values():
            for i, entry in enumerate(entries):
                entry["segment"] = how(i, *entry["segment"])

    return all_of(*(document(f"Proposals_Tiny_{split}.json", change) for split in ("train", "test")))


ONE_SNIPPET = all_of(
    every_feature(lambda f: f[:1]), array(DURATION, lambda d: d * 0 + 0.64), every_proposal(lambda i, s, e: [0.0, 0.6])
)
LIMITS = {
    "all features equal, so all attention equal": every_feature(np.ones_like),
    "features of zero": every_feature(np.zeros_like),
    "features of 1e4": every_feature(lambda f: f * 1e4),
    "features of -1e4": every_feature(lambda f: f * -1e4),
    "features of 1e-30": every_feature(lambda f: f * 1e-30),
    "features of no flow": every_feature(lambda f: f * (np.arange(8) < 4)),
    "one feature apart": every_feature(lambda f: np.where(np.arange(f.size).reshape(f.shape) == 0, 5e4, f)),
    "a single snippet": ONE_SNIPPET,
    "identical proposals": every_proposal(lambda i, s, e: [1.0, 3.0]),
    "proposals that round to no length": every_proposal(lambda i, s, e: [s, s + 1e-4]),
    "proposals that touch and do not overlap": every_proposal(lambda i, s, e: [0.64 * i, 0.64 * (i + 1)]),
    "the same start everywhere": every_proposal(lambda i, s, e: [0.0, e]),
}


@pytest.mark.parametrize("recipe, dtype", [("paper", "float32"), ("release", "float16")])
@pytest.mark.parametrize("limit", LIMITS)
def test_training_and_testing_stay_finite(tmp_path, monkeypatch, limit, recipe, dtype):
    hurry(monkeypatch)
    root = tiny.write(tmp_path / "tiny", videos=6)
    LIMITS[limit](root)
    more = ["--feature_size", 8]  # with one snippet everywhere, [T, 2D] could as well be [2D, T]
    found = train(root, tmp_path, "--recipe", recipe, "--cache_dtype", dtype, *more, epochs=3)
    assert found.status == 0, found.log
    assert "Warning" not in found.log
    results(tmp_path)
    scalars = read_scalars(tmp_path / "run" / "logs")
    assert len(scalars) > 15 and all(np.isfinite(list(values.values())).all() for values in scalars.values())
    for name in ("last_model.pkl", "best_model.pkl"):
        weights = load_checkpoint(tmp_path / "run" / "ckpt" / name)
        assert all(bool(w.isfinite().all()) for w in weights.values())


def test_rows_too_large_for_float16_are_refused_by_name(tmp_path, monkeypatch):
    hurry(monkeypatch)
    root = tiny.write(tmp_path / "tiny", videos=6)
    every_feature(lambda f: f * 1e5)(root)
    refused(train(root, tmp_path, "--cache_dtype", "float16"), "float16", "video_00", "--cache_dtype float32")
    assert train(root, tmp_path).status == 0


@pytest.mark.parametrize("scale", [1e15, 1e30, 3e38])
def test_features_near_the_end_of_float32_train_or_are_named(tmp_path, monkeypatch, scale):
    hurry(monkeypatch)
    root = tiny.write(tmp_path / "tiny", videos=6)
    every_feature(lambda f: (f / f.max() * scale).astype(np.float32))(root)
    found = train(root, tmp_path, epochs=2)
    if found.status:
        assert "epoch 1" in refused(found) or "video_0" in refused(found)
    else:
        results(tmp_path)


# ---- rows


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.floats(-5, 60), st.floats(0, 60)), min_size=1, max_size=12),
    st.sampled_from([0.0, 1.0, -1e4, 1e30, 1e-38]),
)
def test_rows_are_finite_and_depend_on_their_own_proposal_alone(length, pairs, scale):
    features = torch.linspace(-1, 1, length * 4).reshape(length, 4) * scale
    proposals = np.asarray([(s, s + d) for s, d in pairs]).round(2)
    rows = scfe_input(features, proposals)
    assert rows.shape == (len(pairs), 12) and bool(rows.isfinite().all())
    assert bool((rows.abs() <= 2 * features.abs().max() * (1 + 1e-5)).all())
    for i in range(len(pairs)):
        assert torch.equal(scfe_input(features, proposals[i : i + 1])[0], rows[i])


def test_rows_of_a_single_snippet_are_its_own_values():
    features = torch.tensor([[3.0, -2.0]])
    row = scfe_input(features, np.asarray([[0.0, 1.0]]))[0].reshape(3, 2)
    assert bool((row[1, 0] > 0) & (row[1, 1] < 0)) and bool(row.isfinite().all())


# ---- detection


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.data())
def test_fused_scores_are_fractions_whatever_the_logits(data):
    proposals, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))

    def draw(number, kind=EXTREME):
        return np.asarray(data.draw(st.lists(kind, min_size=number, max_size=number)))

    s_base = draw(proposals * (classes + 1)).reshape(proposals, classes + 1)
    attention, s_pc = (draw(proposals, st.sampled_from([0.0, 1e-300, 1e-45, 0.5, 1.0])) for _ in range(2))
    scores, video_score = fuse(s_base, attention, s_pc)
    for found in (scores, video_score):
        assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
    assert len(predicted_classes(video_score)) >= 1
    segments = np.sort(draw(proposals * 2, st.sampled_from([0.0, 1.0, 1.01, 5.0, 2e4])).reshape(-1, 2), axis=1)
    scored, _ = candidates(s_base, attention, s_pc, segments)
    found = detect([str(c) for c in range(classes)], ["v"], [(0, scored)], {}, 25 / 16)
    assert len(found.score) == scored.scores.size and (np.diff(found.score) <= 0).all()
    assert np.isfinite(found.score).all() and (found.score >= 0).all() and (found.score <= 1).all()


@pytest.mark.parametrize("value", [0.0, 1e-320, 1e-300, 1e-3, 1.0])
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_identical_proposals_with_equal_scores_leave_the_first(value, method):
    kept = soft_nms(np.tile([3.0, 8.0], (30, 1)), np.full(30, value), method=method)
    assert kept[0] == value and np.isfinite(kept).all() and (kept[1:] <= value).all() and (np.diff(kept) <= 0).all()


def test_soft_nms_of_empty_segments_and_far_times_is_finite():
    segments = np.asarray([[0, 0], [0, 0], [1e9, 1e9], [1e9, 1e9 + 1], [0, 1e9]], dtype=float)
    kept = soft_nms(segments, np.asarray([0.5, 0.5, 0.4, 0.3, 0.2]))
    assert np.isfinite(kept).all() and kept[0] == 0.5 and kept[1] < 0.5


def test_scores_that_fall_below_every_number_are_zero_and_the_rest_is_untouched():
    """Hundreds of identical proposals: each costs those below it 10 in the logarithm, until nothing is left."""
    segments = np.concatenate([np.tile([0.0, 10.0], (2000, 1)), [[1e4, 1e4 + 5]]])
    scores = np.concatenate([np.linspace(1, 0.5, 2000), [0.25]])
    kept = soft_nms(segments, scores)
    expected = np.exp(np.log(scores[:60]) - 10 * np.arange(60))
    np.testing.assert_allclose(kept[:60], expected, rtol=1e-9)
    assert (kept[80:2000] == 0).all() and kept[2000] == 0.25


# ---- evaluation


def brute_force(truth, found, score, tiou):
    """One class, one video: detections by falling score, equal ones in their order, each take the best free truth."""
    free, hits = list(range(len(truth))), []
    for i in sorted(range(len(found)), key=lambda i: -score[i]):
        best, at = 0.0, None
        for j in free:
            shared = min(found[i][1], truth[j][1]) - max(found[i][0], truth[j][0])
            union = found[i][1] - found[i][0] + truth[j][1] - truth[j][0] - shared
            if shared > 0 and shared / union >= tiou and shared / union > best:
                best, at = shared / union, j
        hits.append(at is not None)
        if at is not None:
            free.remove(at)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return sum(precision[k:].max() for k in np.flatnonzero(hits)) / len(truth)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e-300, 0.5, 1.0]))
def test_equal_scores_rank_in_the_order_given(seed, value):
    random = np.random.default_rng(seed)
    truth, found = (np.sort(random.integers(0, 12, (n, 2)), axis=1).astype(float) for n in (4, 9))
    score = np.full(9, value)
    zero = np.zeros
    for tiou in (0.1, 0.5, 1.0):
        ap = average_precision(
            Segments(zero(4, int), truth, zero(4, int)), Segments(zero(9, int), found, zero(9, int)), score, 1, [tiou]
        )
        np.testing.assert_allclose(ap[0, 0], brute_force(truth, found, score, tiou))


def test_segments_that_only_touch_or_have_no_length_match_nothing():
    truth = GroundTruth(("a",), ("v",), np.zeros(2, int), np.asarray([[1.0, 2.0], [5.0, 5.0]]), np.zeros(2, int), {})
    segments = np.asarray([[0.0, 1.0], [2.0, 3.0], [5.0, 5.0], [1.5, 1.5]])
    found = Detections(("a",), ("v",), np.zeros(4, int), segments, np.zeros(4, int), np.ones(4))
    for protocol in ("exact", "wtal"):
        metrics = evaluate_detections(truth, found, Profile(), protocol)
        assert metrics["mAP"] == [0.0] * 7 and json.loads(json.dumps(metrics)) == metrics


def test_evaluation_without_detections_or_truth_is_0_or_nothing():
    none = np.zeros((0, 2))
    truth = GroundTruth(("a",), ("v",), np.zeros(1, int), np.asarray([[1.0, 2.0]]), np.zeros(1, int), {})
    found = Detections(("a",), ("v",), np.zeros(0, int), none, np.zeros(0, int), np.zeros(0))
    assert evaluate_detections(truth, found, Profile())["mAP"] == [0.0] * 7
    empty = GroundTruth(("a",), ("v",), np.zeros(0, int), none, np.zeros(0, int), {})
    assert evaluate_detections(empty, found, Profile())["mAP"] == [None] * 7


# ---- classification


@pytest.mark.parametrize("value", [0.0, 1e-320, 1.0, -1e300])
def test_equal_video_scores_count_in_the_order_of_videos(value):
    labels = np.asarray([[1, 0], [0, 1], [1, 0], [0, 0]])
    expected = np.mean([(1 / 1 + 2 / 3) / 2, 1 / 2])
    assert mean_average_precision(np.full((4, 2), value), labels) == pytest.approx(expected)
    # a video whose scores are all 0 has no proposal and names no class
    assert accuracy(np.full((4, 2), value), labels) == pytest.approx(2 / 3 if value else 0)


def test_classification_of_nothing_is_none():
    assert mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2))) is None
    assert accuracy(np.zeros((0, 2)), np.zeros((0, 2))) is None
