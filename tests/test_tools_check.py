"""``python -m utils.tools.check``: each fault is one line that says so, and nothing stops at the first."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import tiny
from utils.errors import InputError
from utils.tools.check import Findings, main

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
    return tiny.write(tmp_path / "data")


# ---- ways to change the dataset


def change(path, how):
    np.save(path, how(np.load(path, allow_pickle=True)), allow_pickle=True)


def feature(how, video="video_00"):
    return lambda root: change(root / "Tiny-I3D-JOINTFeatures" / f"{video}.npy", how)


def annotation(name, how):
    return lambda root: change(root / "Tiny-Annotations" / f"{name}.npy", how)


def put(name, index, value):
    """Another value in a column of the annotations."""

    def how(array):
        values = list(array)
        values[index] = value
        return tiny.objects(values) if array.dtype == object else np.asarray(values)

    return annotation(name, how)


def proposals(how):
    """Training proposals after ``how`` worked on {video: proposals} in place."""

    def apply(root):
        path = root / "Proposals_Tiny_train.json"
        document = json.loads(path.read_text())
        how(document["results"])
        path.write_text(json.dumps(document))

    return apply


def profile(**fields):
    return lambda root: (root / "dataset.json").write_text(json.dumps({"proposals_root": ".", **fields}))


def all_of(*changes):
    return lambda root: [change(root) for change in changes]


def without_features(*numbers):
    return lambda root: [(root / "Tiny-I3D-JOINTFeatures" / f"video_{i:02d}.npy").unlink() for i in numbers]


def poisoned(array):
    array[3, 2] = np.nan
    return array


def swapped(root):
    (root / "Proposals_Tiny_train.json").write_text((root / "Proposals_Tiny_test.json").read_text())


# level, topic, change, words of the line; the first is the row's name
WRONG = [
    ("error", "features", feature(poisoned), "NaN or Inf", "video_00"),
    ("error", "features", feature(lambda a: a[:0]), "T = 0", "video_00"),
    ("error", "features", feature(lambda a: a[:, :7]), "width 7, not 8", "video_00"),
    ("error", "features", feature(lambda a: a[0]), "not a [T, 2D] array", "video_00"),
    ("note", "features", feature(lambda a: 0 * a), "nothing but zeros", "video_00"),
    ("note", "features", feature(lambda a: np.repeat(a, 2, 0)), "1 video off by", "video_00 (T "),
    ("note", "features", without_features(1), "4 of 5 train videos", "video_01"),
    ("error", "features", without_features(5, 6, 7), "0 of 3 test videos", "names in the annotations"),
    ("error", "features", all_of(*(feature(lambda a: a[:, :7], f"video_{i:02d}") for i in range(8))), "width 7 is odd"),
    (
        *("note", "features", lambda r: np.save(r / "Tiny-I3D-JOINTFeatures" / "stranger.npy", np.zeros((3, 8)))),
        *("1 file not read (no annotated video", "stranger.npy"),
    ),
    ("note", "features", lambda r: (r / "SIMULATED.txt").write_text(""), "SIMULATED: results say nothing about real"),
    ("note", "annotations", put("labels_all", 0, ["throw"]), "1 video with a weak label", "video_00"),
    ("error", "annotations", put("labels_all", 0, ["fly"]), "'fly'", "video_00"),
    ("error", "annotations", put("segments", 0, [[1.0]]), "not pairs", "video_00"),
    ("note", "annotations", put("labels_all", 0, []), "1 train video without a label, trained as"),
    ("note", "annotations", all_of(put("segments", 6, []), put("labels", 6, [])), "1 test video without an instance"),
    ("error", "annotations", put("segments", 0, [[-1.0, 1.0]] * 2), "start below 0"),
    ("note", "annotations", put("segments", 0, [[1.0, 1.0]] * 2), "with no length"),
    ("note", "annotations", put("segments", 0, [[1.0, 999.0]] * 2), "2 instances in 1 video ending beyond", "video_00"),
    ("note", "annotations", put("segments", 0, [[1.0, 2.0]] * 2), "1 instance in 1 video repeating another"),
    ("note", "annotations", all_of(swapped, profile(train_subset="test")), "every test video is trained on"),
    ("note", "annotations", put("duration", 0, np.nan), "1 video without a duration"),
    ("error", "annotations", put("duration", 0, 0.0), "1 duration that cannot be: video_00"),
    (
        *("error", "annotations", annotation("classlist", lambda a: np.append(a, "wave"))),
        *("1 class without a train video: wave", "descriptor"),
    ),
    (
        *("note", "annotations", all_of(*(put("labels_all", i, ["jump"]) for i in (5, 6, 7)))),
        "1 class without a test video: throw",
    ),
    ("note", "annotations", put("subset", 0, "spare"), "1 video of subset 'spare'"),
    ("error", "annotations", profile(test_subset="Test"), "no test video", "['test', 'validation']"),
    ("note", "annotations", profile(excluded_videos=["x"]), "1 name in excluded_videos but not in the annotations: x"),
    (
        *("error", "annotations", lambda r: (r / "Tiny-Annotations" / "Ambiguous_test.txt").write_text("video_06 1\n")),
        "line 1",
    ),
    ("error", "annotations", annotation("subset", lambda a: a[:-1]), "7 subset for 8 videos"),
    ("error", "annotations", put("videoname", 1, "video_00"), "'video_00'"),
    (
        *("error", "proposals", proposals(lambda results: results["video_01"][2].update(segment=[2, 1]))),
        *("video_01, index 2", "--fix_proposals"),
    ),
    ("error", "proposals", proposals(lambda results: results.update(video_01="x")), "not a list", "video_01"),
    ("note", "proposals", proposals(lambda results: results.pop("video_01")), "1 train video without a proposal, not"),
    ("note", "proposals", proposals(lambda results: results.update(stranger=[])), "not in the annotations", "stranger"),
    ("note", "proposals", proposals(lambda r: r.update(video_07=r["video_01"][:1])), "1 video of another subset"),
    ("error", "proposals", swapped, "none for 5 videos", "train"),
    ("error", "proposals", lambda r: (r / "Proposals_Tiny_test.json").unlink(), "no such file", "README"),
]


def test_a_sound_dataset_has_neither_notes_nor_errors(capsys, root):
    status, found = check(capsys, root)
    assert status == 0 and {level for level, *_ in found} == {"ok"}
    text = " | ".join(lines(found, "ok"))
    balance = "train is 'validation': 5 videos; videos of a class: min 2 (throw), median 2.5, max 3 (jump)"
    head, features = "8 videos, 2 classes, 16 instances", "5 of 5 train videos have features"
    for piece in (
        head,
        "W-TALC's files in ",
        balance,
        INSIDE,
        features,
        "files [T, 8] of float32",
        "train: 45 (min 9,",
    ):
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
    fatal = "7 subset" in words[0] or words[0] == "'video_00'"  # no annotations: nothing to check against
    assert {topic for _, topic, _ in after} == ({"annotations"} if fatal else {"annotations", "features", "proposals"})
    assert fatal == any("not this time" in text for text in lines(after, "note"))
    outside = words[0].startswith(("start below", "with no length", "2 instances in 1 video ending"))
    assert fatal or (INSIDE in lines(after, "ok")) == (not outside)
    assert all(" - " in text for text in lines(after, "error"))  # what to do


def test_all_problems_at_once_are_all_found_and_share_a_line_where_only_the_place_differs(capsys, root):
    cases = [case for case in WRONG if case[3] in ("'fly'", "video_01, index 2", "no test video", "with no length")]
    for spoil in (feature(poisoned), feature(poisoned, "video_02"), *(case[2] for case in cases)):
        spoil(root)
    _, found = check(capsys, root)
    for level, topic, _, *words in cases:
        assert any(all(word in text for word in words) for text in lines(found, level, topic)), words
    (line,) = (text for text in lines(found, "error", "features") if "NaN" in text)
    assert "video_00; video_02" in line


def rewrite(root, kind):
    """The same features in another layout."""
    folder = root / "Tiny-I3D-JOINTFeatures"
    arrays = {p.stem: np.load(p) for p in sorted(folder.iterdir())}
    for p in folder.iterdir():
        p.unlink()
    if kind == "joint":
        folder.rmdir()
        np.save(root / "Tiny-I3D-JOINTFeatures.npy", tiny.objects(list(arrays.values())), allow_pickle=True)
    elif kind == "transposed":
        for video, array in arrays.items():
            np.save(folder / f"v_{video}.npy", array.T)
    else:
        profile(features=["rgb", "flow"])(root)
        for name, columns in (("rgb", slice(0, 4)), ("flow", slice(4, 8))):
            (root / name).mkdir()
            for video, array in arrays.items():
                np.savez(root / name / f"{video}.npz", array[:, columns].astype(np.float16))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("joint", "a joint array [T, 8]"),
        ("transposed", "files [8, T]"),
        ("two", "RGB and flow files [T, 4] of float16"),
    ],
)
def test_every_layout_of_features_is_checked_and_named(capsys, root, kind, words):
    rewrite(root, kind)
    status, found = check(capsys, root)
    assert status == 0 and any(words in text for text in lines(found, "ok", "features"))


def test_files_of_two_types_are_counted_and_rgb_without_flow_is_named(capsys, root):
    feature(lambda a: a.astype(np.float64))(root)
    assert any("float64 (1)" in text and "float32 (7)" in text for text in lines(check(capsys, root)[1], "ok"))
    rewrite(root, "two")
    (root / "flow" / "video_03.npz").unlink()
    _, found = check(capsys, root)
    assert any("RGB without flow" in text and "video_03.npz" in text for text in lines(found, "note", "features"))


@pytest.mark.parametrize("fps, stride", [(30, 16), (25, 8), (15, 16)])
def test_the_rate_that_would_fit_is_suggested_where_all_videos_are_off_by_one_factor(capsys, tmp_path, fps, stride):
    root = tiny.write(tmp_path / "data", snippets=400)  # at 25 frames a second, 16 a snippet
    profile(feature_fps=fps, snippet_stride=stride)(root)
    _, found = check(capsys, root)
    (line,) = lines(found, "error", "features")
    assert f'"feature_fps": {25 * stride / 16:.4g} or "snippet_stride": {16 * fps / 25:.4g} in dataset.json' in line
    assert "8 of 8 videos are off" in line


def test_no_rate_is_suggested_where_none_fits(capsys, root):
    for i, repeat in enumerate((1, 1, 2, 3, 4, 5, 6, 7)):
        feature(lambda a, k=repeat: np.repeat(a, k, axis=0), f"video_{i:02d}")(root)
    (line,) = lines(check(capsys, root)[1], "error", "features")
    assert "no one rate fits" in line
    for i in range(8):
        feature(lambda a: a[:10], f"video_{i:02d}")(root)
    _, found = check(capsys, root, "Tiny", "--feature_size", "8")
    assert any("rescaled to one length" in text for text in lines(found, "error", "features"))


@pytest.mark.parametrize("duration_s", [np.nan, np.inf, 0.0])
def test_without_a_duration_times_are_measured_by_t_and_a_last_partial_snippet(capsys, root, duration_s):
    longest_s = (len(np.load(root / "Tiny-I3D-JOINTFeatures" / "video_06.npy")) + 1) * 16 / 25
    all_of(put("labels", 6, ["jump"]), put("duration", 6, duration_s), put("segments", 6, [[1.0, longest_s]]))(root)
    assert INSIDE in lines(check(capsys, root)[1], "ok")
    put("segments", 6, [[1.0, longest_s + 0.5]])(root)
    _, found = check(capsys, root)
    assert "1 instance in 1 video ending beyond the video, by up to 0.50 s: video_06" in lines(found, "note")
    without_features(6)(root)
    _, found = check(capsys, root)
    assert "1 instance in 1 video of unknown length, not checked against it: video_06" in lines(found, "note")
    put("duration", 0, duration_s)(root)
    feature(lambda a: a[:5])(root)
    (line, *_) = lines(check(capsys, root)[1], "error", "proposals")
    assert "is no segment of a video of 3.840 s" in line and "video_00, index" in line


def test_one_of_a_thing_is_said_in_the_singular(capsys, tmp_path):
    root = tiny.write(tmp_path / "data", videos=2, classes=("jump",), proposals=2)
    profile(snippet_stride=1, feature_fps=25 / 16)(root)
    main(["--dataset_name", "Tiny", "--dataset_root", str(root)])
    out = capsys.readouterr().out
    for words in ("1.5625 frames a second, 1 frame a", "1 class,", "1 of 1 train video has", "1 of them repeats"):
        assert words in out


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


def test_annotations_in_csv_and_json_are_checked_row_by_row(capsys, root):
    names = [f"video_{i:02d}" for i in range(8)]
    (root / "Tiny-Annotations").rename(root / "other")
    rows = [f"{v},{'validation' if i < 5 else 'test'},{('jump', 'throw')[i % 2]},1,2" for i, v in enumerate(names)]
    (root / "a.csv").write_text("\n".join(["video,subset,label,start,end", *rows, "x,test,jump,one,2", ",,,,"]) + "\n")
    _, found = check(capsys, root)
    errors = lines(found, "error")
    assert any(text.startswith("a CSV in ") for text in lines(found, "note"))
    assert len(errors) == 2 and "'one'" in errors[0] and "line 10" in errors[0] and "line 11" in errors[1]
    (root / "a.csv").unlink()
    entry = {"annotations": [{"segment": [1, 2], "label": "jump"}]}
    database = {v: {"subset": "validation" if i < 5 else "test", **entry} for i, v in enumerate(names)}
    database["x"], database["y"] = {"subset": 3, "annotations": [{}]}, 7
    (root / "a.json").write_text(json.dumps({"database": database}))
    _, found = check(capsys, root)
    assert any(text.startswith("ActivityNet's JSON in ") for text in lines(found, "note"))
    (error,) = lines(found, "error", "annotations")
    assert "not an ActivityNet entry" in error and error.count("x; y") == 1


def test_real_gtea_is_sound(shared, capsys):
    status, found = check(capsys, shared / "data" / "GTEA", "GTEA")
    assert status == 0 and not lines(found, "note")


def test_real_thumos_without_features_says_so_and_goes_on(shared, capsys):
    root = shared / "data" / "Thumos14reduced"
    _, found = check(capsys, root, "Thumos14reduced", "--proposals_root", str(root / "proposals_P_w"))
    (error,) = lines(found, "error")
    assert error.startswith("no features")
    text = " | ".join(text for *_, text in found)
    counts = ("412 videos, 20 classes, 6,365 instances", "33,895", "31,587", "14,305 of them repeat another")
    notes = ("28 videos with a weak label", "1 test video without a label: video_test_0000270", "by up to 537.45 s")
    for piece in (*counts, *notes, "96 ambiguous intervals in 36 videos"):
        assert piece in text


@pytest.mark.parametrize("name, counts", [("ActivityNet1.2", "8,907 videos, 100"), ("ActivityNet1.3", "13,912 videos")])
def test_real_activitynet_annotations_are_checked_in_both_forms(shared, capsys, name, counts):
    status, found = check(capsys, shared / "data" / name, name)
    assert status == 2 and any(counts in text for text in lines(found, "ok"))
    assert not lines(found, "error", "annotations") and f"{name}-I3D-JOINTFeatures.npy" in lines(found, "error")[0]


def test_a_dataset_without_folder_or_profile_is_refused_in_one_line(tmp_path):
    for name, folder in (("Thumos14reduced", tmp_path / "none"), ("Mine", tmp_path)):
        with pytest.raises(InputError):
            main(["--dataset_name", name, "--dataset_root", str(folder)])
