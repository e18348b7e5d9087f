"""``python -m utils.tools.check``: each fault is one line that says so, and nothing stops at the first."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import tiny
from tests.changes import all_of, array, document, every_feature, joint, remove, setting, write
from tests.tiny import ANNOTATIONS, CLASSES, FEATURES, SEGMENTS, TEST, TRAIN
from utils.errors import InputError
from utils.tools.check import Findings, main

SUBSET = f"{ANNOTATIONS}/subset.npy"
INSIDE = "every instance lies inside its video"


def check(capsys, root, name="Tiny", *more):
    """Exit status and findings [(level, topic, text)] of a check; every line of the report is aligned."""
    status = main(["--dataset_name", name, "--dataset_root", str(root), *more])
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress bar where standard error is no terminal
    head, empty, *lines, gap, last = captured.out.splitlines()
    assert head.startswith(f"{name} in ") and empty == gap == ""
    found = [(line[:5].rstrip(), line[7:18].rstrip(), line[20:]) for line in lines]
    assert all(line[5:7] == line[18:20] == "  " for line in lines)
    count = [sum(level == wanted for level, *_ in found) for wanted in ("ok", "note", "error")]
    assert [int(word) for word in last.split()[::2]] == count and status == (2 if count[2] else 0)
    return status, found


def lines(found, level, topic=None):
    return [text for a, b, text in found if a == level and topic in (None, b)]


@pytest.fixture
def root(tmp_path):
    root = tiny.write(tmp_path / "data")
    setting(modalities=2)(root)
    return root


# ---- ways to change the dataset: each gives a function of its root


def feature(how, video="video_00"):
    return array(f"{FEATURES}/{video}.npy", how)


def put(name, index, value):
    """Another value in a column of the annotations."""

    def how(column):
        values = [value if i == index else old for i, old in enumerate(column)]
        return tiny.objects(values) if column.dtype == object else np.asarray(values)

    return array(f"{ANNOTATIONS}/{name}.npy", how)


def proposals(how):
    """Training proposals after ``how`` worked on {video: proposals} in place."""
    return document(TRAIN, lambda d: how(d["results"]))


def without_features(*numbers):
    return all_of(*(remove(f"{FEATURES}/video_{i:02d}.npy") for i in numbers))


def poisoned(features):
    features[3, 2] = np.nan
    return features


def swapped(root):
    (root / TRAIN).write_text((root / TEST).read_text())


# level, topic, change, words of the line; the first is the row's name
WRONG = [
    ("error", "features", feature(poisoned), "NaN or Inf", "video_00"),
    ("error", "features", feature(lambda a: a[:0]), "T = 0", "video_00"),
    ("note", "features", feature(lambda a: 0 * a), "nothing but zeros", "video_00"),
    ("note", "features", feature(lambda a: np.repeat(a, 2, 0)), "1 video off by", "video_00 (T "),
    ("note", "features", without_features(1), "features of 4 of 5 train videos", "video_01"),
    ("error", "features", without_features(5, 6, 7), "features of 0 of 3 test videos", "names in the annotations"),
    ("error", "features", all_of(*(feature(lambda a: a[:, :7], f"video_{i:02d}") for i in range(8))), "odd width 7"),
    ("note", "features", write(f"{FEATURES}/stranger.npy", b""), "1 file not read (no annotated video", "stranger.npy"),
    ("note", "features", write("SIMULATED.txt", ""), "SIMULATED: results say nothing about real"),
    ("note", "annotations", put("labels_all", 0, ["throw"]), "1 video with a weak label", "video_00"),
    ("error", "annotations", put("labels_all", 0, ["fly"]), "'fly'", "video_00"),
    ("note", "annotations", put("labels_all", 0, []), "1 train video without a label, trained as"),
    ("note", "annotations", all_of(put("segments", 6, []), put("labels", 6, [])), "1 test video without an instance"),
    ("note", "annotations", put("segments", 0, [[1.0, 1.0]] * 2), "with no length"),
    ("note", "annotations", put("segments", 0, [[1.0, 999.0]] * 2), "1 video with 2 instances ending beyond"),
    ("note", "annotations", put("segments", 0, [[1.0, 2.0]] * 2), "1 video with 1 instance repeating another"),
    ("note", "annotations", all_of(swapped, setting(train_subset="test")), "every test video is trained on"),
    ("note", "annotations", put("duration", 0, np.nan), "1 video without a duration"),
    ("error", "annotations", put("duration", 0, 0.0), "1 duration that cannot be: video_00"),
    ("error", "annotations", array(CLASSES, lambda a: np.append(a, "wave")), "without a train video: wave"),
    ("note", "annotations", all_of(*(put("labels_all", i, ["jump"]) for i in (5, 7))), "without a test video: throw"),
    ("note", "annotations", put("subset", 0, "spare"), "1 video of subset 'spare'"),
    ("error", "annotations", setting(train_subset="new"), "no train video", "['test', 'validation']"),
    ("note", "annotations", setting(excluded_videos=["x"]), "1 name in excluded_videos but not in the annotations: x"),
    ("error", "annotations", array(SUBSET, lambda a: a[:-1]), "7 subset for 8 videos"),
    ("error", "proposals", proposals(lambda r: r["video_01"][2].update(segment=[2, 1])), "video_01, index 2", "--fix"),
    ("note", "proposals", proposals(lambda r: r.pop("video_01")), "1 train video without a proposal, not"),
    ("note", "proposals", proposals(lambda r: r.update(stranger=[])), "not in the annotations", "stranger"),
    ("note", "proposals", proposals(lambda r: r.update(video_07=r["video_01"][:1])), "1 video of another subset"),
    ("error", "proposals", swapped, "none for 5 videos", "train"),
    ("error", "proposals", remove(TEST), "no such file", "README"),
]


def test_a_sound_dataset_has_neither_notes_nor_errors(capsys, root):
    status, found = check(capsys, root)
    assert status == 0 and {level for level, *_ in found} == {"ok"}
    text = " | ".join(lines(found, "ok"))
    balance = "train is 'validation': 5 videos; videos of a class: min 2 (throw), median 2.5, max 3 (jump)"
    head, features = "8 videos, 2 classes, 16 instances", "features of 5 of 5 train videos"
    for piece in (head, "W-TALC's files in ", balance, INSIDE, features, "files [T, 8] of float32", "45 (min 9,"):
        assert piece in text


@pytest.mark.parametrize("case", WRONG, ids=[case[3] for case in WRONG])
def test_what_is_wrong_is_found_and_the_rest_is_checked_all_the_same(capsys, root, case):
    level, topic, spoil, *words = case
    _, before = check(capsys, root)
    spoil(root)
    _, after = check(capsys, root)
    new = [text for text in lines(after, level, topic) if (level, topic, text) not in before]
    assert any(all(word in text for word in words) for text in new), after
    assert level == "error" or not lines(after, "error")
    fatal = words[0] == "7 subset for 8 videos"  # no annotations: nothing to check against
    assert {topic for _, topic, _ in after} == ({"annotations"} if fatal else {"annotations", "features", "proposals"})
    assert fatal == any("not this time" in text for text in lines(after, "note"))
    outside = words[0].startswith(("with no length", "1 video with 2 instances ending"))
    assert fatal or (INSIDE in lines(after, "ok")) == (not outside)
    assert all(" - " in text for text in lines(after, "error"))  # what to do


def test_all_problems_at_once_are_all_found_and_share_a_line_where_only_the_place_differs(capsys, root):
    cases = [c for c in WRONG if c[3] in ("'fly'", "video_01, index 2", "1 video of subset 'spare'", "with no length")]
    for spoil in (feature(poisoned), feature(poisoned, "video_02"), *(case[2] for case in cases)):
        spoil(root)
    _, found = check(capsys, root)
    for level, topic, _, *words in cases:
        assert any(all(word in text for word in words) for text in lines(found, level, topic)), words
    (line,) = (text for text in lines(found, "error", "features") if "NaN" in text)
    assert "video_00; video_02" in line


def two_streams(root):
    (root / FEATURES).rename(root / "before")
    setting(features=["rgb", "flow"])(root)
    for name, columns in (("rgb", slice(0, 4)), ("flow", slice(4, 8))):
        (root / name).mkdir()
        for path in (root / "before").iterdir():
            np.save(root / name / f"v_{path.name}", np.load(path)[:, columns].astype(np.float16))


@pytest.mark.parametrize("change, words", [
    (joint, "a joint array [T, 8]"), (every_feature(lambda a: a.T), "files [8, T]"),
    (two_streams, "RGB and flow files [T, 4] of float16"),
])  # fmt: skip
def test_every_layout_of_features_is_checked_and_named(capsys, root, change, words):
    change(root)
    status, found = check(capsys, root)
    assert status == 0 and any(words in text for text in lines(found, "ok", "features"))


def test_files_of_two_types_are_counted_and_rgb_without_flow_is_named(capsys, root):
    feature(lambda a: a.astype(np.float64))(root)
    assert any("float64 (1)" in text and "float32 (7)" in text for text in lines(check(capsys, root)[1], "ok"))
    two_streams(root)
    (root / "flow" / "v_video_03.npy").unlink()
    _, found = check(capsys, root)
    assert any("RGB without flow" in text and "video_03.npy" in text for text in lines(found, "note", "features"))


def test_features_that_do_not_fit_the_rate_are_an_error_that_names_one_that_would(capsys, tmp_path):
    root = tiny.write(tmp_path / "data", snippets=400)
    setting(snippet_stride=8)(root)  # it is 16
    (line,) = lines(check(capsys, root)[1], "error", "features")
    assert "8 of 8 videos are off" in line and '"snippet_stride": 16 in dataset.json would fit' in line


@pytest.mark.parametrize("without", [(), ("video_03",)])
def test_a_rate_of_its_own_for_each_video_is_checked_too(capsys, root, without):
    rates = {f"video_{i:02d}": 25 for i in range(8)}
    (root / "fps.json").write_text(json.dumps({v: fps for v, fps in rates.items() if v not in without}))
    setting(feature_fps="fps.json")(root)
    errors = lines(check(capsys, root)[1], "error")
    assert len(errors) == len(without) and all("no feature_fps of 1 videos: video_03 - " in line for line in errors)


@pytest.mark.parametrize("unit, factor", [("frames", 25), ("fractions", 1 / 60)])
def test_times_that_cannot_be_seconds_are_an_error(capsys, root, unit, factor):
    def scale(results):
        for entry in (entry for entries in results.values() for entry in entries):
            entry["segment"] = [t / 60 for t in entry["segment"]]

    array(SEGMENTS, lambda a: tiny.objects([[[factor * t for t in s] for s in video] for video in a]))(root)
    proposals(scale)(root)
    _, found = check(capsys, root)
    (instances,), (candidates,) = (lines(found, "error", topic) for topic in ("annotations", "proposals"))
    assert unit in instances and "fractions" in candidates


def test_the_cost_of_rounding_is_said_where_the_profile_rounds(capsys, root):
    put("segments", 6, [[1.0, 1.1], [2.0, 6.0]])(root)
    assert not any("wtal" in text for *_, text in check(capsys, root)[1])
    setting(round_ground_truth=True)(root)
    (line,) = (text for text in lines(check(capsys, root)[1], "note") if "wtal" in text)
    assert "rounding empties 1 of 6 instances" in line and "perfect detector" in line


def test_without_any_test_video_there_is_nothing_to_evaluate(capsys, root):
    array(SUBSET, lambda a: np.full(len(a), "validation"))(root)
    remove(TEST)(root)
    _, found = check(capsys, root)
    assert any("nothing will be evaluated" in text for text in lines(found, "note")) and not lines(found, "error")


@pytest.mark.parametrize("duration_s", [np.nan, np.inf, 0.0])
def test_without_a_duration_times_are_measured_by_t_and_a_last_partial_snippet(capsys, root, duration_s):
    longest_s = (len(np.load(root / "Tiny-I3D-JOINTFeatures" / "video_06.npy")) + 1) * 16 / 25
    all_of(put("labels", 6, ["jump"]), put("duration", 6, duration_s), put("segments", 6, [[1.0, longest_s]]))(root)
    assert INSIDE in lines(check(capsys, root)[1], "ok")
    put("segments", 6, [[1.0, longest_s + 0.5]])(root)
    found = lines(check(capsys, root)[1], "note")
    assert "1 video with 1 instance ending beyond the video, by up to 0.50 s: video_06" in found
    without_features(6)(root)
    found = lines(check(capsys, root)[1], "note")
    assert "1 video with 1 instance of unknown length, not checked against it: video_06" in found
    all_of(put("duration", 0, duration_s), feature(lambda a: a[:5]))(root)
    (line, *_) = lines(check(capsys, root)[1], "error", "proposals")
    assert "is no segment of a video of 3.840 s" in line and "video_00, index" in line


def test_names_from_files_reach_the_terminal_as_plain_text_and_floods_are_cut(capsys):
    findings = Findings()
    findings.topic = "features"
    findings.add("note", "a\x1b[31m\nname\u202e")
    findings.problems([InputError("bad", f"FILE, v{i}", "fix it") for i in range(9)])
    findings.problems([InputError(f"bad {i}", f"FILE, v{i}", "fix it") for i in range(20)])
    assert findings.close() == 2
    written = capsys.readouterr().out.splitlines()
    assert written[0] == "note   features     a\\x1b[31m name\\u202e"
    assert written[1] == "error  features     bad (FILE, v0; v1, v2, v3, v4, v5 and 3 more) - fix it"
    assert len(written) == 2 + 8 + 1 + 2 and "12 problems" in written[-3]
    assert written[-1] == "0 ok, 1 note, 10 errors"


def test_annotations_in_a_csv_are_checked_row_by_row(capsys, root):
    subset = {f"video_{i:02d}": "validation" if i < 5 else "test" for i in range(8)}
    (root / "Tiny-Annotations").rename(root / "other")
    rows = [f"{v},{s},{('jump', 'throw')[i % 2]},1,2" for i, (v, s) in enumerate(subset.items())]
    (root / "a.csv").write_text("\n".join(["video,subset,label,start,end", *rows, "x,test,jump,one,2", "y,,,,"]) + "\n")
    _, found = check(capsys, root)
    first, second = lines(found, "error")
    assert any(text.startswith("a CSV in ") for text in lines(found, "note"))
    assert "'one'" in first and "line 10" in first and "line 11" in second


# ---- real annotations


def test_real_gtea_is_sound(shared, capsys):
    status, found = check(capsys, shared / "data" / "GTEA", "GTEA")
    assert status == 0 and all("is read as RGB" in text for text in lines(found, "note"))


def test_real_thumos_without_features_says_so_and_goes_on(shared, capsys):
    root = shared / "data" / "Thumos14reduced"
    _, found = check(capsys, root, "Thumos14reduced", "--proposals_root", str(root / "proposals_P_w"))
    (error,) = lines(found, "error")
    assert error.startswith("no features")
    text = " | ".join(text for *_, text in found)
    counts = ("412 videos, 20 classes, 6,365 instances", "33,895", "31,587", "14,305 repeats of another")
    notes = ("28 videos with a weak label", "1 test video without a label: video_test_0000270", "by up to 537.45 s")
    for piece in (*counts, *notes, "96 ambiguous intervals in 36 videos"):
        assert piece in text
