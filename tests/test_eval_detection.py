from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import average_precision as module
from eval.average_precision import Columns, average_precision
from eval.detection import detection_table, evaluate_detections, main, read_truth, within
from eval.postprocess import ambiguous
from tests.conftest import ROOT
from tests.tiny import write
from utils.datasets.profile import ACTIVITYNET_TIOU, PROFILES, THUMOS_TIOU, load_profile
from utils.errors import InputError
from utils.segments import Segments

TIOUS = [0.1, 0.25, 0.5, 0.75, 1.0]
THUMOS = PROFILES["Thumos14reduced"]


# ---- average precision ----------------------------------------------------------------------------------------------


def official(truth, found, tious):
    """AP of one class at each threshold by ActivityNet's own rule (eval_detection.py), detection by detection.

    truth: rows (video, start, end); found: rows (video, start, end, score). Ties as the field's: equal scores in the
    order given, equal tIoUs to the later instance.
    """
    free = np.full((len(tious), len(truth)), True)
    hit = np.zeros((len(tious), len(found)))
    for d, (video, start, end, _) in enumerate(sorted(found, key=lambda row: -row[3])):
        mine = [g for g, row in enumerate(truth) if row[0] == video]
        tiou = {}
        for g in mine:
            shared = max(0.0, min(end, truth[g][2]) - max(start, truth[g][1]))
            union = (end - start) + (truth[g][2] - truth[g][1]) - shared
            tiou[g] = shared / union if union > 0 else 0.0
        for t, threshold in enumerate(tious):
            for g in sorted(mine, key=lambda g: (tiou[g], g), reverse=True):
                if tiou[g] < threshold:
                    break
                if free[t, g]:
                    free[t, g], hit[t, d] = False, 1
                    break
    ap = []
    for row in hit:
        recall = np.r_[0, np.cumsum(row) / len(truth), 1]
        precision = np.r_[0, np.cumsum(row) / np.arange(1, len(row) + 1), 0]
        for i in range(len(precision) - 1)[::-1]:
            precision[i] = max(precision[i], precision[i + 1])
        steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
        ap.append(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))
    return ap


def by_class(truth, found, score, num_class, tious):
    """``official`` of each class, [T, C]."""
    ap = np.full((len(tious), num_class), np.nan)
    for c in np.unique(truth.label):
        instances = [(v, *s) for v, s, label in zip(*truth) if label == c]
        detections = [(v, *s, x) for v, s, label, x in zip(*found, score) if label == c]
        ap[:, c] = official(instances, detections, tious)
    return ap


def drawn(seed, instances, detections, videos, num_class, ticks):
    """Segments on a coarse grid and scores of few values: ties of every kind."""
    rng = np.random.default_rng(seed)

    def columns(n):
        segment = np.sort(rng.integers(0, ticks, (n, 2)), axis=1).astype(float)
        return Columns(rng.integers(0, videos, n), segment, rng.integers(0, num_class, n))

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
def test_any_input_agrees_with_the_official_rule(seed, instances, detections, videos, num_class, ticks):
    truth, found, score = drawn(seed, instances, detections, videos, num_class, ticks)
    fast = average_precision(truth, found, score, num_class, TIOUS)
    np.testing.assert_allclose(fast, by_class(truth, found, score, num_class, TIOUS), rtol=0, atol=1e-12)


def test_long_chains_of_rejections_and_small_blocks_change_nothing(monkeypatch):
    truth, found, score = drawn(7, 60, 400, 1, 2, 12)
    expected = by_class(truth, found, score, 2, TIOUS)
    for at_once in (2_000_000, 1000, 1):
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
        np.testing.assert_allclose(average_precision(truth, found, score, 2, TIOUS), expected, rtol=0, atol=1e-12)


def test_equal_tious_go_to_the_later_instance():
    truth = Columns(np.zeros(2, int), np.array([[0.0, 4.0], [8.0, 12.0]]), np.zeros(2, int))
    # the first detection meets both with tIoU 1/3 and takes the later one, so that the second finds the earlier free
    found = Columns(np.zeros(2, int), np.array([[0.0, 12.0], [0.0, 4.0]]), np.zeros(2, int))
    assert average_precision(truth, found, np.array([0.9, 0.8]), 1, [0.3]) == [[1.0]]
    found = found._replace(segment=np.array([[0.0, 12.0], [8.0, 12.0]]))
    assert average_precision(truth, found, np.array([0.9, 0.8]), 1, [0.3]) == [[0.5]]


def test_what_rounding_emptied_cannot_be_found():
    empty = Columns(np.zeros(1, int), np.array([[3.0, 3.0]]), np.zeros(1, int))
    assert average_precision(empty, empty, np.ones(1), 1, [0.1]) == [[0.0]]


def test_input_that_does_not_fit_is_refused():
    good, _, _ = drawn(0, 40, 0, 3, 3, 12)
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


# ---- golden numbers and real data -----------------------------------------------------------------------------------


def test_golden_detection_map(golden, shared):
    folder = golden if (golden / "detections.csv").is_file() else shared / "golden"
    root = shared / "data/Thumos14reduced"
    _, truth = read_truth("Thumos14reduced", root, load_profile("Thumos14reduced", root), "test")
    with open(folder / "detections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    place = {video: i for i, video in enumerate(truth.videos)}
    found = Columns(
        np.asarray([place[row["video-id"]] for row in rows]),
        np.asarray([[float(row["t-start"]), float(row["t-end"])] for row in rows]),
        np.asarray([int(float(row["label"])) for row in rows]),
    )
    score = np.asarray([float(row["score"]) for row in rows])
    instances = Columns(truth.video, np.round(truth.segment_s * 25 / 16), truth.label)
    for expected in json.loads((folder / "detection_map.json").read_text()).values():
        ap = average_precision(instances, found, score, len(truth.classes), expected["tiou"])
        np.testing.assert_allclose(ap, expected["AP"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap.mean(axis=1), expected["mAP"], rtol=0, atol=1e-9)


def test_golden_protocols_of_the_real_proposals_with_their_own_scores(shared):
    root = shared / "data/Thumos14reduced"
    profile = load_profile("Thumos14reduced", root)
    _, truth = read_truth("Thumos14reduced", root, profile, "test")
    document = json.loads((root / "proposals_P_w/Proposals_Thumos14reduced_test.json").read_text())
    found, unknown = Segments.from_json(document, truth.classes, "P_w")
    assert len(found.score) == 31587 and not unknown
    expected = {"wtal": (43.621, 212), "exact": (42.428, 212), "exact210": (43.273, 210)}
    for protocol, (average, videos) in expected.items():
        metrics = evaluate_detections(truth, found, profile, protocol)
        assert round(100 * metrics["average"]["0.1:0.7"], 3) == average
        assert metrics["videos"] == videos
        if protocol == "wtal":
            assert (metrics["rounding"]["instances"], metrics["rounding"]["emptied"]) == (3358, 17)


def a_slice():
    """Invented instances and detections of the size of a few THUMOS14 videos, one of them without detections."""
    rng = np.random.default_rng(2014)
    video, label = rng.integers(0, 12, 90), rng.integers(0, 5, 90)
    start = rng.uniform(0, 150, 90)
    truth = Segments(
        tuple("abcde"),
        (*(f"video_{i}" for i in range(11)), "video_test_0000270"),
        video,
        np.stack([start, start + rng.gamma(2.0, 2.0, 90)], axis=1),
        label,
    )
    pick = rng.integers(0, 90, 700)
    pick = pick[video[pick] != 4]
    segment_s = np.sort(truth.segment_s[pick] + rng.normal(0, 0.8, (len(pick), 2)), axis=1)
    guess = np.where(rng.random(len(pick)) < 0.8, label[pick], rng.integers(0, 5, len(pick)))
    return truth, Segments(truth.classes, truth.videos, video[pick], segment_s, guess, rng.random(len(pick)))


@pytest.mark.parametrize("protocol, average", [("wtal", 0.4700346), ("exact", 0.4779133), ("exact210", 0.4874706)])
def test_golden_map_and_filter_of_a_slice(protocol, average):
    """The numbers stored here came from the slow rule, which has to agree as well."""
    truth, found = a_slice()
    hidden = (found.video == 2) & ambiguous(found.segment_s * 25 / 16, np.array([[20.0, 60.0]]), 25 / 16)
    assert hidden.sum() == 11
    kept = {name: getattr(found, name)[~hidden] for name in ("video", "segment_s", "label", "score")}
    found = replace(found, **kept)
    metrics = evaluate_detections(truth, found, THUMOS, protocol)
    instances, detections = truth.segment_s, found.segment_s
    if protocol == "wtal":
        instances, detections = np.round(instances * 25 / 16), np.round(detections * 25 / 16, 2)
    counted = [s.video != (11 if protocol == "exact210" else -1) for s in (truth, found)]
    instances = Columns(*(x[counted[0]] for x in (truth.video, instances, truth.label)))
    detections = Columns(*(x[counted[1]] for x in (found.video, detections, found.label)))
    ap = by_class(instances, detections, found.score[counted[1]], 5, THUMOS_TIOU)
    np.testing.assert_allclose(metrics["mAP"], ap.mean(axis=1), rtol=0, atol=1e-12)
    assert metrics["average"]["0.1:0.7"] == pytest.approx(average, abs=5e-7)


def test_the_average_of_activitynet_is_that_of_the_official_rule():
    truth, found = a_slice()
    metrics = evaluate_detections(truth, found, PROFILES["ActivityNet1.3"], "exact")
    instances = Columns(truth.video, truth.segment_s, truth.label)
    detections = Columns(found.video, found.segment_s, found.label)
    ap = by_class(instances, detections, found.score, 5, np.linspace(0.5, 0.95, 10))
    assert metrics["average"] == {"0.5:0.95": pytest.approx(ap.mean(axis=1).mean(), abs=1e-12)}
    assert metrics["tiou"] == np.linspace(0.5, 0.95, 10).tolist()


# ---- protocols ------------------------------------------------------------------------------------------------------


def perfect(truth):
    return replace(truth, score=np.linspace(1, 0.5, len(truth.label)))


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 100, 40)
    segment_s = np.stack([start, start + rng.uniform(1, 9, 40)], axis=1)
    videos = (*(f"video_{i}" for i in range(5)), "video_test_0000270")
    return Segments(("jump", "run", "swim"), videos, np.arange(40) % 6, segment_s, np.arange(40) % 2)


def test_the_instances_themselves_score_one_and_twice_is_no_better(truth):
    exact = evaluate_detections(truth, perfect(truth), THUMOS, "exact")
    assert exact["mAP"] == [1.0] * 7
    assert list(exact["AP"]) == ["jump", "run"], "a class without instances has no AP"
    assert exact["average"] == {"0.1:0.5": 1.0, "0.3:0.7": 1.0, "0.1:0.7": 1.0}
    again = perfect(truth)
    twice = {name: np.repeat(getattr(again, name), 2, axis=0) for name in ("video", "segment_s", "label", "score")}
    assert evaluate_detections(truth, replace(again, **twice), THUMOS, "exact")["mAP"][-1] < 0.8


def test_thresholds_are_linspace_s_own_shown_and_averaged_as_meant(truth):
    assert THUMOS_TIOU == tuple(np.linspace(0.1, 0.7, 7)) and ACTIVITYNET_TIOU == tuple(np.linspace(0.5, 0.95, 10))
    tious = tuple(0.1 * np.arange(1, 8))
    assert tious[2] == 0.30000000000000004 and tious[6] == 0.7000000000000001
    metrics = evaluate_detections(truth, perfect(truth), replace(THUMOS, tiou_thresholds=tious))
    assert metrics["tiou"] == list(tious)
    assert detection_table(metrics).splitlines()[2].split()[:8] == "tIoU 0.1 0.2 0.3 0.4 0.5 0.6 0.7".split()
    assert within(tious, "0.3:0.7").tolist() == [False, False] + [True] * 5
    assert within(tious, "0.1:0.5").tolist() == [True] * 5 + [False] * 2
    assert within(ACTIVITYNET_TIOU, "0.5:0.95").all()
    assert list(metrics["average"]) == ["0.1:0.5", "0.3:0.7", "0.1:0.7"]


def test_what_rounding_costs_is_counted_and_shown(truth):
    segment_s = np.concatenate([truth.segment_s[:36], np.full((4, 1), 64.0) + [0.01, 0.2]])
    short = replace(truth, segment_s=segment_s)
    metrics = evaluate_detections(short, perfect(short), THUMOS, "wtal")
    cost, line = metrics["rounding"], detection_table(metrics).splitlines()[1]
    assert (cost["instances"], cost["emptied"], cost["perfect"]) == (40, 4, metrics["average"])
    assert metrics["average"]["0.1:0.7"] == pytest.approx(0.9)
    assert line == "rounding empties 4 of 40 instances; a perfect detector would score 90.00 (avg 0.1:0.7)"
    for other in (
        evaluate_detections(short, perfect(short), THUMOS, "exact"),
        evaluate_detections(short, perfect(short), PROFILES["ActivityNet1.3"], "wtal"),
    ):
        assert "rounding" not in other and set(other["mAP"]) == {1.0}


def test_videos_and_classes_meet_by_name_and_strangers_are_ignored(truth):
    found, turn = perfect(truth), np.array([2, 0, 1])
    moved = Segments(
        ("swim", "jump", "run", "fly"),
        ("stranger", *truth.videos[::-1]),
        np.r_[6 - found.video, 0, 1],
        np.r_[found.segment_s, [[0.0, 1.0], [0.0, 1.0]]],
        np.r_[np.argsort(turn)[found.label], 0, 3],
        np.r_[found.score, 2.0, 2.0],
    )
    assert evaluate_detections(truth, moved, THUMOS, "exact")["mAP"] == [1.0] * 7


def test_without_instances_there_is_no_number_and_without_detections_zero(truth):
    none = np.zeros(0, int)
    nothing = replace(truth, video=none, segment_s=np.zeros((0, 2)), label=none)
    metrics = evaluate_detections(nothing, perfect(truth), THUMOS)
    assert metrics["mAP"] == [None] * 7 and metrics["AP"] == {} and set(metrics["average"].values()) == {None}
    assert "-" in detection_table(metrics)
    silent = replace(nothing, score=np.zeros(0))
    assert evaluate_detections(truth, silent, THUMOS)["mAP"] == [0.0] * 7


def test_an_unknown_protocol_is_refused(truth):
    with pytest.raises(ValueError):
        evaluate_detections(truth, perfect(truth), THUMOS, "exakt")


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    """Perfect detections of a tiny dataset, their file, and the arguments that score it."""
    root = write(tmp_path / "Tiny")
    _, truth = read_truth("Tiny", root, load_profile("Tiny", root), "test")
    file = tmp_path / "found.json"
    document = perfect(truth).to_json()
    file.write_text(json.dumps(document))
    return document, file, ["--detections", str(file), "--dataset_name", "Tiny", "--dataset_root", str(root)]


def test_the_command_prints_a_table_and_writes_the_metrics(command, tmp_path, capsys):
    _, _, arguments = command
    output = tmp_path / "metrics.json"
    assert main([*arguments, "--per_class", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "protocol exact" in lines[0] and "3 videos" in lines[0], "own data are not rounded"
    assert [line.split()[0] for line in lines[1:]] == ["tIoU", "mAP", "jump", "throw"]
    assert lines[2].split()[2:] == ["100.00"] * 10
    metrics = json.loads(output.read_text())
    assert metrics["protocol"] == "exact" and metrics["mAP"] == [1.0] * 7 and metrics["AP"]["jump"] == [1.0] * 7


def test_the_command_runs_as_a_file_from_anywhere(command, tmp_path):
    _, _, arguments = command
    run = [sys.executable, str(ROOT / "eval/detection.py"), *arguments]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "100.00" in done.stdout, done.stderr


def test_the_command_says_what_it_does_not_score(command, capsys):
    document, file, arguments = command
    results = document["results"]
    first, *others = results
    results["elsewhere"] = [dict(results[first][0])]
    results[first] = [{**entry, "label": "fly"} for entry in results[first]]
    file.write_text(json.dumps(document))
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "2 detections have labels outside the class list and are not scored: fly" in text
    assert "1 detections in 1 videos outside the subset are not scored: elsewhere" in text
    assert "1 of 3 videos have no detections" in text


@pytest.mark.parametrize("kind", ["no videos", "no detections", "unknown labels", "unknown videos"])
def test_nothing_to_score_is_an_error_unless_allowed(command, capsys, kind):
    document, file, arguments = command
    results = document["results"]
    results = {
        "no videos": {},
        "no detections": {video: [] for video in results},
        "unknown labels": {video: [{**e, "label": "fly"} for e in found] for video, found in results.items()},
        "unknown videos": {f"other_{video}": found for video, found in results.items()},
    }[kind]
    file.write_text(json.dumps({"results": results}))
    with pytest.raises(InputError, match=r"no detection to score.*found\.json.*--allow_empty"):
        main(arguments)
    assert main([*arguments, "--allow_empty"]) == 0
    assert "mAP (%)  0.00" in capsys.readouterr().out.replace("   0.00", "  0.00")


@pytest.mark.parametrize("times", ["frames", "fractions"])
def test_detections_that_cannot_be_seconds_stop_with_the_likely_cause(command, times):
    document, file, arguments = command
    for entry in (entry for found in document["results"].values() for entry in found):
        entry["segment"] = [x * 25 if times == "frames" else x / 30 for x in entry["segment"]]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"6 detections .*found\.json.* are these {times}"):
        main(arguments)


def test_a_name_with_and_without_v_is_one_video(command, capsys):
    document, file, arguments = command
    document["results"] = {f"v_{video}": found for video, found in document["results"].items()}
    file.write_text(json.dumps(document))
    assert main(arguments) == 0
    assert "100.00" in capsys.readouterr().out


def test_bad_input_to_the_command_is_one_clear_error(command):
    document, file, arguments = command
    next(iter(document["results"].values()))[0]["score"] = "high"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"found.json, video_\d+, index 0"):
        main(arguments)
    with pytest.raises(InputError, match="no video in subset 'nowhere'.*test, validation"):
        main([*arguments, "--subset", "nowhere"])
    file.unlink()
    with pytest.raises(InputError, match="found.json"):
        main(arguments)
