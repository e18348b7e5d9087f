from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import average_precision as module
from eval.average_precision import Segments, average_precision
from eval.detection import detection_table, evaluate_detections, main
from eval.detections import Detections
from tests.tiny import write
from utils.errors import InputError
from utils.profile import PROFILES, GroundTruth, load_ground_truth, load_profile

TIOUS = [0.1, 0.25, 0.5, 0.75, 1.0]


def one_by_one(truth, found, score, num_class, tious):
    """The ActivityNet protocol detection by detection."""
    ap = np.full((len(tious), num_class), np.nan)
    for c in range(num_class):
        instances = [g for g in range(len(truth.label)) if truth.label[g] == c]
        ranking = sorted((d for d in range(len(score)) if found.label[d] == c), key=lambda d: -score[d])
        for t, threshold in enumerate(tious):
            taken, precision, recall = set(), [], []
            for rank, d in enumerate(ranking):
                best, choice = threshold, None
                for g in instances:
                    if g in taken or truth.video[g] != found.video[d]:
                        continue
                    (a, b), (e, f) = truth.segment[g], found.segment[d]
                    shared = max(0.0, min(b, f) - max(a, e))
                    union = (f - e) + (b - a) - shared
                    tiou = shared / union if union > 0 else 0.0
                    if tiou > best or (tiou == best and choice is None):
                        best, choice = tiou, g
                if choice is not None:
                    taken.add(choice)
                precision.append(len(taken) / (rank + 1))
                recall.append(len(taken) / max(len(instances), 1))
            if instances:
                steps = np.diff(np.r_[0.0, recall])
                ap[t, c] = sum(step * max(precision[k:]) for k, step in enumerate(steps))
    return ap


def drawn(seed, instances, detections, videos, num_class, ticks):
    """Segments on a coarse grid and scores of few values: ties of every kind."""
    rng = np.random.default_rng(seed)

    def segments(n):
        return np.sort(rng.integers(0, ticks, (n, 2)), axis=1).astype(float)

    def columns(n):
        return Segments(rng.integers(0, videos, n), segments(n), rng.integers(0, num_class, n))

    return columns(instances), columns(detections), rng.integers(0, 8, detections) / 8


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    instances=st.integers(0, 12),
    detections=st.integers(0, 40),
    videos=st.integers(1, 4),
    num_class=st.integers(1, 3),
    ticks=st.sampled_from([4, 12, 1000]),
)
def test_any_input_agrees_with_one_detection_after_the_other(seed, instances, detections, videos, num_class, ticks):
    truth, found, score = drawn(seed, instances, detections, videos, num_class, ticks)
    fast = average_precision(truth, found, score, num_class, TIOUS)
    np.testing.assert_allclose(fast, one_by_one(truth, found, score, num_class, TIOUS), rtol=0, atol=1e-12)


def test_long_chains_of_rejections_and_small_blocks_change_nothing(monkeypatch):
    truth, found, score = drawn(7, 60, 400, 1, 2, 12)
    expected = one_by_one(truth, found, score, 2, TIOUS)
    for at_once in (2_000_000, 1000, 1):
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
        np.testing.assert_allclose(average_precision(truth, found, score, 2, TIOUS), expected, rtol=0, atol=1e-12)


def test_golden_detection_map(shared):
    root = shared / "data/Thumos14reduced"
    truth = load_ground_truth("Thumos14reduced", root, load_profile("Thumos14reduced", root), "test")
    with open(shared / "golden/detections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    place = {video: i for i, video in enumerate(truth.videos)}
    found = Segments(
        np.asarray([place[row["video-id"]] for row in rows]),
        np.asarray([[float(row["t-start"]), float(row["t-end"])] for row in rows]),
        np.asarray([int(float(row["label"])) for row in rows]),
    )
    score = np.asarray([float(row["score"]) for row in rows])
    instances = Segments(truth.video, np.round(truth.segment_s * 25 / 16), truth.label)
    for expected in json.loads((shared / "golden/detection_map.json").read_text()).values():
        ap = average_precision(instances, found, score, len(truth.classes), expected["tiou"])
        np.testing.assert_allclose(ap, expected["AP"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap.mean(axis=1), expected["mAP"], rtol=0, atol=1e-9)


def test_real_proposals_with_their_own_scores_in_all_protocols(shared):
    root = shared / "data/Thumos14reduced"
    profile = load_profile("Thumos14reduced", root)
    truth = load_ground_truth("Thumos14reduced", root, profile, "test")
    document = json.loads((root / "proposals_P_w/Proposals_Thumos14reduced_test.json").read_text())
    found, unknown = Detections.from_json(document, truth.classes)
    assert len(found.score) == 31587 and not unknown
    expected = {"wtal": (43.60, 212), "exact": (42.43, 212), "exact210": (43.27, 210)}
    for protocol, (average, videos) in expected.items():
        metrics = evaluate_detections(truth, found, profile, protocol)
        assert round(100 * metrics["average"]["0.1:0.7"], 2) == average
        assert metrics["videos"] == videos


def perfect(truth):
    score = np.linspace(1, 0.5, len(truth.label))
    return Detections(truth.classes, truth.videos, truth.video, truth.segment_s, truth.label, score)


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    video = np.arange(40) % 6
    start = rng.uniform(0, 100, 40)
    segment_s = np.stack([start, start + rng.uniform(1, 9, 40)], axis=1)
    videos = (*(f"video_{i}" for i in range(5)), "video_test_0000270")
    return GroundTruth(("jump", "run", "swim"), videos, video, segment_s, np.arange(40) % 2, {})


THUMOS = PROFILES["Thumos14reduced"]


def test_the_ground_truth_itself_scores_one_and_twice_is_no_better(truth):
    exact = evaluate_detections(truth, perfect(truth), THUMOS, "exact")
    assert exact["mAP"] == [1.0] * 7
    assert list(exact["AP"]) == ["jump", "run"], "a class without ground truth has no AP"
    assert exact["average"] == {"0.1:0.5": 1.0, "0.3:0.7": 1.0, "0.1:0.7": 1.0}
    again = perfect(truth)
    twice = {name: np.repeat(getattr(again, name), 2, axis=0) for name in ("video", "segment_s", "label", "score")}
    assert evaluate_detections(truth, replace(again, **twice), THUMOS, "exact")["mAP"][-1] < 0.8


def test_protocols_differ_in_rounding_and_in_videos(truth):
    found = perfect(truth)
    rng = np.random.default_rng(1)
    found = replace(found, segment_s=np.sort(found.segment_s + rng.normal(0, 1.0, (40, 2)), axis=1))
    wtal, exact, exact210 = (evaluate_detections(truth, found, THUMOS, p) for p in ("wtal", "exact", "exact210"))
    assert [m["videos"] for m in (wtal, exact, exact210)] == [6, 6, 5]
    assert len({m["average"]["0.1:0.7"] for m in (wtal, exact, exact210)}) == 3
    snippets = Segments(truth.video, np.round(truth.segment_s * 25 / 16), truth.label)
    rounded = Segments(found.video, np.round(found.segment_s * 25 / 16, 2), found.label)
    ap = average_precision(snippets, rounded, found.score, 3, THUMOS.tiou_thresholds)
    np.testing.assert_allclose(wtal["mAP"], ap[:, :2].mean(axis=1))
    kept = truth.video != 5
    columns = (Segments(x.video[kept], x.segment_s[kept], x.label[kept]) for x in (truth, found))
    ap = average_precision(*columns, found.score[kept], 3, THUMOS.tiou_thresholds)
    np.testing.assert_allclose(exact210["mAP"], ap[:, :2].mean(axis=1))


def test_a_profile_that_rounds_nothing_makes_wtal_exact(truth):
    found = perfect(truth)
    activitynet = PROFILES["ActivityNet1.3"]
    wtal, exact = (evaluate_detections(truth, found, activitynet, p) for p in ("wtal", "exact"))
    assert wtal["mAP"] == exact["mAP"] == [1.0] * 10
    assert wtal["average"] == {"0.5:0.95": 1.0}


def test_videos_and_classes_meet_by_name_and_strangers_are_passed_over(truth):
    found, turn = perfect(truth), np.array([2, 0, 1])
    moved = Detections(
        ("swim", "jump", "run", "fly"),
        ("stranger", *truth.videos[::-1]),
        np.r_[6 - found.video, 0, 1],
        np.r_[found.segment_s, [[0.0, 1.0], [0.0, 1.0]]],
        np.r_[np.argsort(turn)[found.label], 0, 3],
        np.r_[found.score, 2.0, 2.0],
    )
    assert evaluate_detections(truth, moved, THUMOS, "exact")["mAP"] == [1.0] * 7


def test_without_ground_truth_there_is_no_number(truth):
    nothing = replace(truth, video=truth.video[:0], segment_s=truth.segment_s[:0], label=truth.label[:0])
    metrics = evaluate_detections(nothing, perfect(truth), THUMOS)
    assert metrics["mAP"] == [None] * 7 and metrics["AP"] == {} and set(metrics["average"].values()) == {None}
    assert "-" in detection_table(metrics)


def test_detections_of_no_use_leave_zero(truth):
    nothing = Detections(truth.classes, (), np.zeros(0, int), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    assert evaluate_detections(truth, nothing, THUMOS)["mAP"] == [0.0] * 7


def test_input_that_does_not_fit_is_refused(truth):
    good = Segments(truth.video, truth.segment_s, truth.label)
    score = np.ones(40)
    bad = [
        (good._replace(segment=good.segment[:5]), good, score, 3, [0.5]),
        (good, good._replace(segment=np.full((40, 2), np.nan)), score, 3, [0.5]),
        (good, good, score, 1, [0.5]),
        (good, good, score[:3], 3, [0.5]),
        (good, good, np.full(40, np.nan), 3, [0.5]),
        (good, good, score, 3, [0.0]),
    ]
    for arguments in bad:
        with pytest.raises(ValueError):
            average_precision(*arguments)
    with pytest.raises(ValueError):
        evaluate_detections(truth, perfect(truth), THUMOS, "exakt")


@pytest.fixture
def command(tmp_path):
    """A tiny dataset and the arguments that score a file of detections on it."""
    root = write(tmp_path / "Tiny")
    truth = load_ground_truth("Tiny", root, load_profile("Tiny", root), "test")
    file = tmp_path / "found.json"
    arguments = ["--detections", str(file), "--dataset_name", "Tiny", "--dataset_root", str(root)]
    return perfect(truth).to_json(), file, arguments


def test_the_command_prints_a_table_and_writes_the_metrics(command, tmp_path, capsys):
    document, file, arguments = command
    file.write_text(json.dumps(document))
    output = tmp_path / "metrics.json"
    assert main([*arguments, "--protocol", "exact", "--per_class", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "protocol exact" in lines[0] and "3 videos" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["tIoU", "mAP", "jump", "throw"]
    assert lines[2].split()[2:] == ["100.00"] * 10
    metrics = json.loads(output.read_text())
    assert metrics["protocol"] == "exact" and metrics["mAP"] == [1.0] * 7 and metrics["AP"]["jump"] == [1.0] * 7


def test_the_command_says_what_it_does_not_score(command, capsys):
    document, file, arguments = command
    results = document["results"]
    first = next(iter(results))
    results["elsewhere"] = [dict(results[first][0])]
    results[first] = [{**entry, "label": "fly"} for entry in results[first]]
    file.write_text(json.dumps(document))
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "2 detections have labels outside the class list and are not scored: fly" in text
    assert "1 detections in 1 videos outside the subset are not scored: elsewhere" in text


def test_bad_input_to_the_command_is_one_clear_error(command):
    document, file, arguments = command
    file.write_text(json.dumps({"results": {"elsewhere": []}}))
    with pytest.raises(InputError, match="no video of the subset"):
        main(arguments)
    next(iter(document["results"].values()))[0]["score"] = "high"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"found.json, video_\d+, index 0"):
        main(arguments)
    file.unlink()
    with pytest.raises(InputError, match="found.json"):
        main(arguments)
