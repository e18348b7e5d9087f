from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import average_precision as module
from eval.average_precision import Columns, average_precision
from eval.detection import PROTOCOLS, detection_table, evaluate_detections, main, read_truth, within
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


def one_video(*segments):
    """Segments of one video and one class."""
    none = np.zeros(len(segments), int)
    return Columns(none, np.array(segments, dtype=float), none)


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


@pytest.mark.parametrize("at_once", [2_000_000, 1000, 1])
def test_long_chains_of_rejections_and_small_blocks_change_nothing(monkeypatch, at_once):
    truth, found, score = drawn(7, 60, 400, 1, 2, 12)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    fast = average_precision(truth, found, score, 2, TIOUS)
    np.testing.assert_allclose(fast, by_class(truth, found, score, 2, TIOUS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("second, ap", [((0, 4), 1.0), ((8, 12), 0.5)])
def test_equal_tious_go_to_the_later_instance(second, ap):
    # the first detection meets both with tIoU 1/3 and takes the later one: only the earlier is left for the second
    truth, found = one_video((0, 4), (8, 12)), one_video((0, 12), second)
    assert average_precision(truth, found, np.array([0.9, 0.8]), 1, [0.3]) == [[ap]]


def test_input_that_does_not_fit_is_refused():
    good, _, _ = drawn(0, 40, 0, 3, 3, 12)
    score = np.ones(40)
    for arguments in (
        (good._replace(segment=good.segment[:5]), good, score, 3, [0.5]),
        (good, good._replace(segment=np.full((40, 2), np.nan)), score, 3, [0.5]),
        (good, good, score, 1, [0.5]),
        (good, good, score[:3], 3, [0.5]),
        (good, good, np.full(40, np.nan), 3, [0.5]),
        (good, good, score, 3, [0.0]),
    ):
        with pytest.raises(ValueError):
            average_precision(*arguments)


# ---- golden numbers and real data -----------------------------------------------------------------------------------


def test_golden_detection_map(shared, golden_thumos):
    folder, root = golden_thumos, shared / "data/Thumos14reduced"
    _, truth = read_truth("Thumos14reduced", root, load_profile("Thumos14reduced", root), "test")
    rows = pd.read_csv(folder / "detections.csv")
    video = pd.Index(truth.videos).get_indexer(rows["video-id"])
    found = Columns(video, rows[["t-start", "t-end"]].to_numpy(), rows["label"].to_numpy(int))
    instances = Columns(truth.video, np.round(truth.segment_s * 25 / 16), truth.label)
    for expected in json.loads((folder / "detection_map.json").read_text()).values():
        ap = average_precision(instances, found, rows["score"].to_numpy(), 20, expected["tiou"])
        np.testing.assert_allclose(ap, expected["AP"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap.mean(axis=1), expected["mAP"], rtol=0, atol=1e-9)


def test_golden_protocols_of_the_real_proposals_with_their_own_scores(shared):
    root = shared / "data/Thumos14reduced"
    profile = load_profile("Thumos14reduced", root)
    _, truth = read_truth("Thumos14reduced", root, profile, "test")
    document = json.loads((root / "proposals_P_w/Proposals_Thumos14reduced_test.json").read_text())
    found, unknown = Segments.from_json(document, truth.classes, "P_w")
    assert len(found.score) == 31587 and not unknown
    found = {protocol: evaluate_detections(truth, found, profile, protocol) for protocol in PROTOCOLS}
    numbers = {p: (round(100 * m["average"]["0.1:0.7"], 3), m["videos"]) for p, m in found.items()}
    assert numbers == {"wtal": (43.621, 212), "exact": (42.428, 212), "exact210": (43.273, 210)}
    assert (found["wtal"]["rounding"]["instances"], found["wtal"]["rounding"]["emptied"]) == (3358, 17)


def a_slice():
    """Invented instances and detections of the size of a few THUMOS14 videos, one of them without detections."""
    rng = np.random.default_rng(2014)
    video, label = rng.integers(0, 12, 90), rng.integers(0, 5, 90)
    start = rng.uniform(0, 150, 90)
    videos = (*(f"video_{i}" for i in range(11)), "video_test_0000270")
    segment_s = np.stack([start, start + rng.gamma(2.0, 2.0, 90)], axis=1)
    truth = Segments(tuple("abcde"), videos, video, segment_s, label)
    pick = rng.integers(0, 90, 700)
    pick = pick[video[pick] != 4]
    segment_s = np.sort(truth.segment_s[pick] + rng.normal(0, 0.8, (len(pick), 2)), axis=1)
    guess = np.where(rng.random(len(pick)) < 0.8, label[pick], rng.integers(0, 5, len(pick)))
    return truth, Segments(truth.classes, truth.videos, video[pick], segment_s, guess, rng.random(len(pick)))


@pytest.mark.parametrize(
    "profile, protocol, average",
    [
        ("Thumos14reduced", "wtal", 0.4700346),
        ("Thumos14reduced", "exact", 0.4779133),
        ("Thumos14reduced", "exact210", 0.4874706),
        ("ActivityNet1.3", "exact", None),
    ],
)
def test_golden_map_and_filter_of_a_slice(profile, protocol, average):
    """The numbers stored here came from the slow rule, which has to agree as well."""
    truth, found = a_slice()
    hidden = (found.video == 2) & ambiguous(found.segment_s * 25 / 16, np.array([[20.0, 60.0]]), 25 / 16)
    assert hidden.sum() == 11
    found = found.take(~hidden)
    metrics = evaluate_detections(truth, found, PROFILES[profile], protocol)
    if protocol == "exact210":
        truth, found = (segments.keep(segments.videos[:-1]) for segments in (truth, found))
    instances, detections = truth.segment_s, found.segment_s
    if protocol == "wtal":
        instances, detections = np.round(instances * 25 / 16), np.round(detections * 25 / 16, 2)
    instances, detections = Columns(truth.video, instances, truth.label), Columns(found.video, detections, found.label)
    tious = np.linspace(0.1, 0.7, 7) if profile == "Thumos14reduced" else np.linspace(0.5, 0.95, 10)
    ap = by_class(instances, detections, found.score, 5, tious)
    np.testing.assert_allclose(metrics["mAP"], ap.mean(axis=1), rtol=0, atol=1e-12)
    assert metrics["tiou"] == tious.tolist() and len(metrics["average"]) == (3 if average else 1)
    assert list(metrics["average"].values())[-1] == pytest.approx(average or ap.mean(), abs=5e-7 if average else 1e-12)


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
    twice = perfect(truth).take(np.repeat(np.arange(40), 2))
    assert evaluate_detections(truth, twice, THUMOS, "exact")["mAP"][-1] < 0.8


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
    for profile, protocol in ((THUMOS, "exact"), (PROFILES["ActivityNet1.3"], "wtal")):
        exact = evaluate_detections(short, perfect(short), profile, protocol)
        assert "rounding" not in exact and set(exact["mAP"]) == {1.0}


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
    with pytest.raises(ValueError):
        evaluate_detections(truth, silent, THUMOS, "exakt")


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    """Arguments that score the perfect detections {VIDEO: [detection]} of a tiny dataset after ``change`` had them."""
    root, file = write(tmp_path / "Tiny"), tmp_path / "found.json"
    results = perfect(read_truth("Tiny", root, load_profile("Tiny", root), "test")[1]).to_json()["results"]

    def arguments(*more, change=lambda results: results):
        file.write_text(json.dumps({"results": change(results)}))
        return ["--detections", str(file), "--dataset_name", "Tiny", "--dataset_root", str(root), *more]

    return arguments


def test_the_command_prints_a_table_and_writes_the_metrics(command, tmp_path, capsys):
    output = tmp_path / "metrics.json"
    assert main(command("--per_class", "--output", str(output))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "protocol exact" in lines[0] and "3 videos" in lines[0], "own data are not rounded"
    assert [line.split()[0] for line in lines[1:]] == ["tIoU", "mAP", "jump", "throw"]
    assert lines[2].split()[2:] == ["100.00"] * 10
    metrics = json.loads(output.read_text())
    assert metrics["protocol"] == "exact" and metrics["mAP"] == [1.0] * 7 and metrics["AP"]["jump"] == [1.0] * 7


def test_the_command_runs_as_a_file_from_anywhere(command, tmp_path):
    run = [sys.executable, str(ROOT / "eval/detection.py"), *command()]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "100.00" in done.stdout, done.stderr


def called_fly(entries):
    return [{**entry, "label": "fly"} for entry in entries]


def test_the_command_says_what_it_does_not_score(command, capsys):
    def change(results):
        first = next(iter(results))
        return {**results, "elsewhere": results[first][:1], first: called_fly(results[first])}

    assert main(command(change=change)) == 0
    text = capsys.readouterr().out
    assert "2 detections have labels outside the class list and are not scored: fly" in text
    assert "1 detections in 1 videos outside the subset are not scored: elsewhere" in text
    assert "1 of 3 videos have no detections" in text


NOTHING = {
    "no videos": lambda results: {},
    "no detections": lambda results: {video: [] for video in results},
    "unknown labels": lambda results: {video: called_fly(found) for video, found in results.items()},
    "unknown videos": lambda results: {f"other_{video}": found for video, found in results.items()},
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_to_score_is_an_error_unless_allowed(command, capsys, kind):
    with pytest.raises(InputError, match=r"no detection to score.*found\.json.*--allow_empty"):
        main(command(change=NOTHING[kind]))
    assert main(command("--allow_empty", change=NOTHING[kind])) == 0
    assert "mAP (%) 0.00" in " ".join(capsys.readouterr().out.split())


def timed(factor):
    """Detections whose times are multiplied."""

    def change(results):
        scaled = lambda entry: {**entry, "segment": [factor * t for t in entry["segment"]]}  # noqa: E731
        return {video: list(map(scaled, entries)) for video, entries in results.items()}

    return change


def scored_high(results):
    next(iter(results.values()))[0]["score"] = "high"
    return results


@pytest.mark.parametrize(
    "change, more, message",
    [
        (timed(25), (), r"6 detections .*found\.json.* are these frames"),
        (timed(1 / 30), (), r"6 detections .*found\.json.* are these fractions"),
        (scored_high, (), r"found.json, video_\d+, index 0"),
        (dict, ("--subset", "nowhere"), "no video in subset 'nowhere'.*test, validation"),
        (dict, ("--detections", "none.json"), "none.json"),
    ],
)
def test_bad_input_to_the_command_is_one_clear_error(command, change, more, message):
    with pytest.raises(InputError, match=message):
        main(command(*more, change=change))


def test_a_name_with_and_without_v_is_one_video(command, capsys):
    assert main(command(change=lambda results: {f"v_{video}": found for video, found in results.items()})) == 0
    assert "100.00" in capsys.readouterr().out
