from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from eval.detection import comparable, evaluate_detections, read_truth
from eval.diagnose import main
from eval.diagnosis import (
    BINS,
    KINDS,
    ceiling,
    characteristics,
    confusion,
    detad_tious,
    diagnose,
    false_positives,
    kinds,
    matched,
    sensitivity,
)
from tests.tiny import write
from utils.datasets.profile import ACTIVITYNET_TIOU, PROFILES, load_profile
from utils.segments import Segments

TIOUS = [0.1, 0.3, 0.5, 0.7]
EXACT = replace(PROFILES["ActivityNet1.3"], tiou_thresholds=tuple(TIOUS))
CLASSES = 4  # the last has no instances, the one before it no detections


def tiou(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union > 0 else 0.0


def drawn(seed, ticks=12, instances=14, detections=70):
    """Instances and detections on a grid of times, so that ties of every kind occur; also as rows of dicts."""
    rng = np.random.default_rng(seed)

    def made(n, classes, score=None):
        segment = np.sort(rng.integers(0, ticks, (n, 2)), axis=1).astype(float)
        columns = rng.integers(0, 3, n), segment, rng.choice(classes, n)
        return Segments(tuple("abcd"), ("u", "v", "w"), *columns, score)

    truth = made(instances, [0, 1, 2])
    found = made(detections, [0, 1, 3], rng.integers(0, 20, detections) / 20)
    return truth, found


def rows(segments):
    score = np.ones(len(segments.video)) if segments.score is None else segments.score
    columns = zip(segments.video, segments.segment_s, segments.label, score)
    return [{"i": i, "video": v, "times": t, "label": c, "score": s} for i, (v, t, c, s) in enumerate(columns)]


def walk(truth, found, label, threshold):
    """Detections of a class, best first, as (row, the instance it takes or None): the rule of mAP."""
    free = [g for g in truth if g["label"] == label]
    ranking = []
    for d in sorted((d for d in found if d["label"] == label), key=lambda d: -d["score"]):
        near = [(tiou(d["times"], g["times"]), g["i"], g) for g in free if g["video"] == d["video"]]
        best = max(near, key=lambda x: x[:2], default=(0, 0, None))
        taken = best[2] if best[0] >= threshold else None
        free = [g for g in free if taken is None or g["i"] != taken["i"]]
        ranking.append((d, taken))
    return ranking


def area(ranking, number, average):
    """AP_N of a ranking of a class with that many instances: each recall step times the best P_N from there on."""
    precision, recall, positive = [], [], 0
    for k, (_, taken) in enumerate(ranking):
        positive += taken is not None
        r, false = positive / number, k + 1 - positive
        precision.append(r * average / (r * average + false) if r else 0.0)
        recall.append(r)
    steps = np.diff([0.0, *recall])
    return sum(step * max(precision[k:]) for k, step in enumerate(steps)), precision


def mean_area(truth, found, average, drop=lambda threshold, d, taken: False):
    """Mean AP_N over thresholds and the classes of ``truth``, without the detections that ``drop`` names."""
    values = []
    for threshold in TIOUS:
        for label in {g["label"] for g in truth}:
            ranking = [x for x in walk(truth, found, label, threshold) if not drop(threshold, *x)]
            values.append(area(ranking, sum(g["label"] == label for g in truth), average)[0])
    return np.mean(values)


def kind_of(truth, d, taken, threshold):
    """The name of what a detection is, by the definition."""
    if taken is not None:
        return "true positive"
    mine = [g for g in truth if g["video"] == d["video"]]
    near = [(tiou(d["times"], g["times"]), g["label"] == d["label"], g["i"], g["label"]) for g in mine]
    u, same, _, _ = max(near, default=(0, False, 0, 0))
    if u >= threshold:
        return "double detection" if same else "wrong label"
    return "background error" if u < 0.1 else "localisation error" if same else "confusion"


SEEDS = range(6)


@pytest.fixture(params=SEEDS)
def both(request):
    """Instances and detections as columns, matched, and as rows."""
    truth, found = drawn(request.param, ticks=(12, 1000)[request.param % 2])
    case = matched(*comparable(truth, found, EXACT, "exact"), CLASSES, TIOUS)
    return truth, found, case, rows(truth), rows(found)


def average_of(truth):
    return len(truth) / len({g["label"] for g in truth})


def test_normalised_ap_follows_its_definition(both):
    truth, found, case, slow_truth, slow_found = both
    numbers = diagnose(truth, found, EXACT, "exact", {})
    assert numbers["mean_AP_N"] == pytest.approx(mean_area(slow_truth, slow_found, average_of(slow_truth)), abs=1e-12)
    np.testing.assert_allclose(numbers["mAP"], evaluate_detections(truth, found, EXACT, "exact")["mAP"], atol=1e-12)


def test_every_detection_is_what_the_definition_calls_it(both):
    _, _, case, truth, found = both
    fast = kinds(case)
    place = {label: int(case.begin[label]) for label in range(CLASSES)}
    for t, threshold in enumerate(TIOUS):
        for label in range(CLASSES):
            ranking = walk(truth, found, label, threshold)
            expected = [kind_of(truth, d, taken, threshold) for d, taken in ranking]
            got = fast[t, place[label] : place[label] + len(ranking)]
            assert [KINDS[k] for k in got] == expected


def test_the_profile_of_false_positives_and_what_each_kind_costs(both, monkeypatch):
    _, _, case, truth, found = both
    monkeypatch.setattr("eval.diagnosis.FACTOR", 3)
    result, average = false_positives(case), average_of(truth)
    count = np.zeros((3, len(KINDS)))
    kept = []
    for label in range(3):
        number = sum(g["label"] == label for g in truth)
        for threshold in TIOUS:
            for k, (d, taken) in enumerate(walk(truth, found, label, threshold)[: 3 * number]):
                count[k // number, KINDS.index(kind_of(truth, d, taken, threshold))] += 1
                kept.append(d["i"])
    np.testing.assert_allclose(result["profile"], count / count.sum(axis=1, keepdims=True), atol=1e-12)
    best = [d for d in found if d["i"] in set(kept)]
    base = mean_area(truth, best, average)
    assert result["AP_N"] == pytest.approx(base, abs=1e-12)
    for kind in KINDS[1:]:
        without = mean_area(truth, best, average, lambda t, d, taken: kind_of(truth, d, taken, t) == kind)  # noqa: B023
        assert result["gain"][kind] == pytest.approx(without - base, abs=1e-12)


def test_sensitivity_and_missed_instances_bin_by_bin(both):
    truth, found, case, slow_truth, slow_found = both
    values = {"length": truth.segment_s[:, 1] - truth.segment_s[:, 0]}
    edges = (0, 2, 5, np.inf) if values["length"].max() < 20 else (0, 100, 300, np.inf)
    average, result = average_of(slow_truth), sensitivity(case, values, {"length": edges})["length"]
    caught = []  # (threshold, instance)
    for threshold in TIOUS:
        for label in range(3):
            ranking = walk(slow_truth, slow_found, label, threshold)
            _, precision = area(ranking, sum(g["label"] == label for g in slow_truth), average)
            last = max((k for k, p in enumerate(precision) if p >= 0.05), default=-1)
            caught += [(threshold, taken["i"]) for _, taken in ranking[: last + 1] if taken is not None]
    lengths = [g["times"][1] - g["times"][0] for g in slow_truth]
    for k, row in enumerate(result["bins"]):
        mine = [g for g, x in zip(slow_truth, lengths) if (edges[k] < x or k == 0) and x <= edges[k + 1]]
        assert (row["instances"], row["share"]) == (len(mine), pytest.approx(len(mine) / len(slow_truth)))
        inside = {g["i"] for g in mine}
        if not mine:
            assert np.isnan(row["AP_N"]) and np.isnan(row["missed"])
            continue
        others = {
            (threshold, d["i"])
            for threshold in TIOUS
            for label in range(3)
            for d, taken in walk(slow_truth, slow_found, label, threshold)
            if taken is not None and taken["i"] not in inside
        }
        values_ = []
        for threshold in TIOUS:  # matched from the start, with the bin's instances and the detections that are left
            left = [d for d in slow_found if (threshold, d["i"]) not in others]
            for label in {g["label"] for g in mine}:
                number = sum(g["label"] == label for g in mine)
                values_.append(area(walk(mine, left, label, threshold), number, average)[0])
        assert row["AP_N"] == pytest.approx(np.mean(values_), abs=1e-12)
        hit = sum(i in inside for _, i in caught)
        assert row["missed"] == pytest.approx(1 - hit / (len(mine) * len(TIOUS)), abs=1e-12)
    base = mean_area(slow_truth, slow_found, average)
    ap = [row["AP_N"] for row in result["bins"] if row["instances"]]
    assert (result["lowest"], result["highest"]) == pytest.approx((min(ap) / base, max(ap) / base))
    overall = diagnose(truth, found, EXACT, "exact", {})["missed"]
    assert overall == pytest.approx(1 - len(caught) / (len(slow_truth) * len(TIOUS)), abs=1e-12)


def test_confusion_counts_classes_that_overlap(both):
    _, _, case, truth, found = both
    count = np.zeros((CLASSES, CLASSES))
    for d in found:
        near = [
            (tiou(d["times"], g["times"]), g["label"] == d["label"], g["i"], g["label"])
            for g in truth
            if g["video"] == d["video"]
        ]
        u, *_, label = max(near, default=(0, 0, 0, 0))
        count[d["label"], label] += u >= 0.5
    total = count.sum(axis=1, keepdims=True)
    expected = np.divide(count, total, out=np.full_like(count, np.nan), where=total > 0)
    np.testing.assert_allclose(confusion(case), expected, atol=1e-12)


def test_curves_hold_the_best_precision_at_each_recall(both):
    truth, found, _, slow_truth, slow_found = both
    curves = diagnose(truth, found, EXACT, "exact", {})["curves"]
    assert list(curves["precision"]) == ["a", "b", "c"]
    for label in range(3):
        number = sum(g["label"] == label for g in slow_truth)
        for t, threshold in enumerate(TIOUS):
            hit = np.cumsum([taken is not None for _, taken in walk(slow_truth, slow_found, label, threshold)])
            pairs = [(h / number, h / (k + 1)) for k, h in enumerate(hit) if h]
            for r, p in zip(curves["recall"], curves["precision"]["abcd"[label]][t]):
                best = max((p for recall, p in pairs if recall >= r - 1e-9), default=0)
                assert p == pytest.approx(best, abs=6e-5)


def test_ceiling_is_what_scores_that_know_the_truth_reach(both):
    truth, found, *_ = both
    proposals_s = {video: found.of(video)[0] for video in found.videos[:2]}  # none for the last video
    result = ceiling(truth, proposals_s, EXACT, "exact", TIOUS)
    instances, oracle = rows(truth), []
    for video, segments in enumerate(proposals_s.values()):
        for segment in segments:
            for label in range(3):
                mine = [g for g in instances if (g["video"], g["label"]) == (video, label)]
                score = max((tiou(segment, g["times"]) for g in mine), default=0)
                if score > 0:
                    oracle.append({"video": video, "times": segment, "label": label, "score": score})
    taken = [walk(instances, oracle, label, 1e-9) for label in range(3)]
    single = [d for ranking in taken for d, instance in ranking if instance is not None]
    for name, chosen in (("scored", oracle), ("single", single)):
        columns = [np.asarray([d[key] for d in chosen]) for key in ("video", "times", "label", "score")]
        expected = evaluate_detections(truth, Segments(truth.classes, truth.videos, *columns), EXACT, "exact")["mAP"]
        np.testing.assert_allclose(result[name]["mAP"], expected, atol=1e-12)
        assert result[name]["average"] == pytest.approx(np.mean(expected))
    nothing = ceiling(truth, {}, EXACT, "exact", TIOUS)
    assert nothing["single"]["average"] == nothing["scored"]["average"] == 0


def test_characteristics_and_their_bins():
    segment_s = np.array([[0, 3], [10, 16], [20, 20], [0, 120], [0, 3], [5, 8]], dtype=float)
    video, label = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 0, 0, 1])
    truth = Segments(("a", "b"), ("u", "v", "w"), video, segment_s, label)
    values = characteristics(truth, {"u": 150.0, "v": 100.0, "w": np.nan})
    np.testing.assert_allclose(values["coverage"], [0.02, 0.04, 0, 1, np.nan, np.nan])
    assert values["length"].tolist() == [3, 6, 0, 120, 3, 3]
    assert values["instances"].tolist() == [2, 2, 1, 1, 1, 1], "of the same class in the same video"
    case = matched(*comparable(truth, replace(truth, score=np.ones(6)), EXACT, "exact"), 2, TIOUS)
    result = sensitivity(case, values, BINS["Thumos14reduced"])
    numbers = {name: [row["instances"] for row in part["bins"]] for name, part in result.items()}
    assert numbers == {"coverage": [2, 1, 0, 0, 1], "length": [4, 1, 0, 0, 1], "instances": [4, 2, 0, 0]}
    quintiles = sensitivity(case, {"length": np.arange(6.0), "same": np.ones(6), "none": np.full(6, np.nan)}, {})
    assert [row["instances"] for row in quintiles["length"]["bins"]] == [2, 1, 1, 1, 1]
    assert [row["instances"] for row in quintiles["same"]["bins"]] == [6]
    assert [row["instances"] for row in quintiles["none"]["bins"]] == [0]


def test_without_detections_or_instances_there_is_still_a_diagnosis():
    truth, found = drawn(0)
    none = replace(found, **{k: getattr(found, k)[:0] for k in ("video", "segment_s", "label", "score")})
    numbers = diagnose(truth, none, EXACT, "exact", {}, proposals_s={})
    assert numbers["mean_AP_N"] == 0 and numbers["missed"] == 1 and np.isnan(numbers["confusion"]).all()
    numbers = diagnose(replace(none, score=None), found, EXACT, "exact", {}, proposals_s={})
    assert np.isnan(numbers["mean_AP_N"]) and numbers["instances"] == 0


def test_detad_has_thresholds_of_its_own():
    assert detad_tious(PROFILES["Thumos14reduced"]) == (0.5,)
    assert detad_tious(PROFILES["ActivityNet1.2"]) == detad_tious(EXACT) == ACTIVITYNET_TIOU


@pytest.mark.parametrize("options", [[], ["--detad", "--protocol", "wtal"]])
def test_the_command_writes_numbers_and_pictures(tmp_path, capsys, options):
    root = write(tmp_path / "Tiny", classes=("jump", "$throw_{high"))
    _, truth = read_truth("Tiny", root, load_profile("Tiny", root), "test")
    found = replace(truth, score=np.linspace(1, 0.5, len(truth.label)))
    (tmp_path / "found.json").write_text(json.dumps(found.to_json()))
    arguments = ["--dataset_name", "Tiny", "--dataset_root", str(root), "--detections", str(tmp_path / "found.json")]
    if not options:
        options = ["--proposals", str(root / "Proposals_Tiny_test.json")]
    assert main([*arguments, *options]) == 0
    text = capsys.readouterr().out
    assert "true positive" in text and "coverage" in text and ("ceiling" in text) == ("--proposals" in options)
    folder = tmp_path / "diagnosis"
    numbers = json.loads((folder / "diagnosis.json").read_text())
    assert numbers["tiou"] == ([0.5] if "--detad" in options else list(PROFILES["Thumos14reduced"].tiou_thresholds))
    assert numbers["mean_AP_N"] == 1 and numbers["missed"] == 0 and numbers["classes"] == ["jump", "$throw_{high"]
    names = ["confusion", "curves", "false_positives", "sensitivity"] + ["ceiling"] * ("--proposals" in options)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["diagnosis.json", *(f"{name}.{kind}" for name in names for kind in ("png", "svg"))]
    )
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_real_proposals_with_their_own_scores(shared):
    root = shared / "data/Thumos14reduced"
    profile = load_profile("Thumos14reduced", root)
    annotations, truth = read_truth("Thumos14reduced", root, profile, "test")
    document = json.loads((root / "proposals_P_w/Proposals_Thumos14reduced_test.json").read_text())
    found, _ = Segments.from_json(document, truth.classes, "P_w")
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    numbers = diagnose(truth, found, profile, "wtal", duration_s, BINS["Thumos14reduced"])
    assert 100 * numbers["mean_AP_N"] == pytest.approx(45.939, abs=1e-3)
    assert 100 * numbers["missed"] == pytest.approx(30.873, abs=1e-3)
    gain = numbers["false_positives"]["gain"]
    expected = [0.890, 0.289, 6.859, 0.119, 5.603]
    assert [100 * gain[kind] for kind in KINDS[1:]] == pytest.approx(expected, abs=1e-3)
