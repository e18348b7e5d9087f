"""``dataset.py check``: every way a dataset can be wrong is one line that says so, and nothing stops at the first."""

from __future__ import annotations

import json

import numpy as np
import pytest

import dataset
from tests import tiny
from utils.errors import InputError
from utils.findings import Findings

LEVELS = ("ok", "note", "error")


def check(capsys, root, name="Tiny", *more):
    """Exit status and findings [(level, topic, text)] of a check; every line of the report is aligned."""
    status = dataset.main(["check", "--dataset_name", name, "--dataset_root", str(root), *more])
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress bar where standard error is no terminal
    head, empty, *lines, gap, last = captured.out.splitlines()
    assert head.startswith(f"{name} in ") and empty == gap == ""
    found = [(line[:5].rstrip(), line[7:18].rstrip(), line[20:]) for line in lines]
    assert all(level in LEVELS and line[5:7] == line[18:20] == "  " for (level, *_), line in zip(found, lines))
    count = [sum(level == wanted for level, *_ in found) for wanted in LEVELS]
    assert [int(word) for word in last.split()[::2]] == count and status == (2 if count[2] else 0)
    return status, found


def lines(found, level, topic=None):
    return [text for a, b, text in found if a == level and topic in (None, b)]


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def change(path, how):
    array = np.load(path, allow_pickle=True)
    np.save(path, how(array), allow_pickle=True)


def feature(how, video="video_00"):
    return lambda root: change(root / "Tiny-I3D-JOINTFeatures" / f"{video}.npy", how)


def annotation(name, how):
    return lambda root: change(root / "Tiny-Annotations" / f"{name}.npy", how)


def replaced(index, value):
    def how(array):
        values = list(array)
        values[index] = value
        return tiny.objects(values) if array.dtype == object else np.asarray(values)

    return how


def proposals(how, split="train"):
    def apply(root):
        path = root / f"Proposals_Tiny_{split}.json"
        document = json.loads(path.read_text())
        how(document["results"])
        path.write_text(json.dumps(document))

    return apply


def profile(**fields):
    return lambda root: (root / "dataset.json").write_text(json.dumps({"proposals_root": ".", **fields}))


def poisoned(value):
    def how(array):
        array[3, 2] = value
        return array

    return how


def segment(index, value):
    return proposals(lambda results: results["video_01"][index].update(segment=value))


WRONG = {
    "NaN": (feature(poisoned(np.nan)), "error", "features", "NaN or Inf", "video_00"),
    "Inf": (feature(poisoned(np.inf)), "error", "features", "NaN or Inf", "video_00"),
    "no snippet": (feature(lambda a: a[:0]), "error", "features", "T = 0", "video_00"),
    "another width": (feature(lambda a: a[:, :7]), "error", "features", "width 7, not 8", "video_00"),
    "rank 1": (feature(lambda a: a[0]), "error", "features", "not a [T, 2D] array", "video_00"),
    "text": (feature(lambda a: a.astype("U4")), "error", "features", "not a [T, 2D] array", "video_00"),
    "objects": (feature(lambda a: a.astype(object)), "error", "features", "object array", "video_00"),
    "cut short": (
        lambda r: (r / "Tiny-I3D-JOINTFeatures" / "video_00.npy").write_bytes(b"\x93NUMPY"),
        *("error", "features", "video_00", "make the file again"),
    ),
    "zeros": (feature(lambda a: 0 * a), "note", "features", "nothing but zeros", "video_00"),
    "too long": (feature(lambda a: np.repeat(a, 2, 0)), "note", "features", "1 video off by", "video_00 (T "),
    "no features of one": (
        lambda r: (r / "Tiny-I3D-JOINTFeatures" / "video_01.npy").unlink(),
        *("note", "features", "4 of 5 train videos", "video_01"),
    ),
    "no features of a split": (
        lambda r: [(r / "Tiny-I3D-JOINTFeatures" / f"video_{i:02d}.npy").unlink() for i in (5, 6, 7)],
        *("error", "features", "0 of 3 test videos", "names in the annotations"),
    ),
    "a stranger's features": (
        lambda r: np.save(r / "Tiny-I3D-JOINTFeatures" / "stranger.npy", np.zeros((3, 8))),
        *("note", "features", "1 file of no annotated video", "stranger.npy"),
    ),
    "one video, two files": (
        lambda r: np.savez(r / "Tiny-I3D-JOINTFeatures" / "video_00.npz", np.ones((20, 8))),
        *("error", "features", "two files of one video", "video_00", "remove one"),
    ),
    "a file with v_, a file without": (
        lambda r: np.save(r / "Tiny-I3D-JOINTFeatures" / "v_video_00.npy", np.ones((20, 8))),
        *("note", "features", "1 file not read: another one of the same video is: v_video_00.npy"),
    ),
    "odd width": (
        lambda r: [change(p, lambda a: a[:, :7]) for p in (r / "Tiny-I3D-JOINTFeatures").iterdir()],
        *("error", "features", "width 7 is odd", "RGB and flow"),
    ),
    "a weak label": (
        annotation("labels_all", replaced(0, ["throw"])),
        "note",
        "annotations",
        "1 video with a weak label",
    ),
    "unknown class": (annotation("labels_all", replaced(0, ["fly"])), "error", "annotations", "'fly'", "video_00"),
    "unknown instance": (annotation("labels", replaced(0, ["fly"] * 2)), "error", "annotations", "'fly'", "video_00"),
    "too few labels": (annotation("labels", replaced(0, ["jump"])), "error", "annotations", "2 segments and 1 labels"),
    "no pair": (annotation("segments", replaced(0, [[1.0]])), "error", "annotations", "not pairs", "video_00"),
    "no list": (annotation("segments", replaced(0, 3.0)), "error", "annotations", "not pairs", "video_00"),
    "no label": (
        annotation("labels_all", replaced(0, [])),
        "note",
        "annotations",
        "1 train video without a label, trained as",
    ),
    "no instance": (
        lambda r: [annotation(name, replaced(6, []))(r) for name in ("segments", "labels")],
        *("note", "annotations", "1 test video without an instance", "video_06"),
    ),
    "reversed": (
        annotation("segments", replaced(0, [[3.0, 1.0], [1.0, 2.0]])),
        *("error", "annotations", "a segment that ends before it starts", "video_00"),
    ),
    "negative": (annotation("segments", replaced(0, [[-1.0, 1.0]] * 2)), "error", "annotations", "start below 0"),
    "zero length": (annotation("segments", replaced(0, [[1.0, 1.0]] * 2)), "note", "annotations", "with no length"),
    "beyond": (
        annotation("segments", replaced(0, [[1.0, 1000.0]] * 2)),
        *("note", "annotations", "2 instances in 1 video with the end beyond", "video_00"),
    ),
    "an instance twice": (
        annotation("segments", replaced(0, [[1.0, 2.0]] * 2)),
        *("note", "annotations", "1 instance in 1 video repeating another, each counted: video_00"),
    ),
    "trained on what is tested": (
        lambda r: [WRONG["the other split's proposals"][0](r), profile(train_subset="test")(r)],
        *("note", "annotations", "train_subset and test_subset are both 'test'", "every test video is trained on"),
    ),
    "simulated features": (
        lambda r: (r / "SIMULATED.txt").write_text(""),
        *("note", "features", "SIMULATED: results say nothing about real videos", "SIMULATED.txt"),
    ),
    "no duration": (annotation("duration", replaced(0, np.nan)), "note", "annotations", "1 video without a duration"),
    "duration 0": (annotation("duration", replaced(0, 0.0)), "error", "annotations", "1 duration", "video_00"),
    "class of no training": (
        annotation("classlist", lambda a: np.append(a, "wave")),
        *("error", "annotations", "without a train video: wave", "descriptor"),
    ),
    "class of no test": (
        lambda r: [annotation("labels_all", replaced(i, ["jump"]))(r) for i in (5, 6, 7)],
        *("note", "annotations", "without a test video: throw"),
    ),
    "a third subset": (annotation("subset", replaced(0, "spare")), "note", "annotations", "1 video of subset 'spare'"),
    "no such subset": (profile(test_subset="Test"), "error", "annotations", "no test video", "['test', 'validation']"),
    "excluded stranger": (profile(excluded_videos=["x"]), "note", "annotations", "excluded_videos but not", "x"),
    "a bad ambiguous line": (
        lambda r: (r / "Tiny-Annotations" / "Ambiguous_test.txt").write_text("video_06 1\n"),
        *("error", "annotations", "line 1", "mend the line"),
    ),
    "subset too short": (annotation("subset", lambda a: a[:-1]), "error", "annotations", "7 subset for 8 videos"),
    "video twice": (annotation("videoname", replaced(1, "video_00")), "error", "annotations", "'video_00'", "twice"),
    "reversed proposal": (segment(2, [2, 1]), "error", "proposals", "video_01, index 2", "--fix_proposals"),
    "proposal far beyond": (segment(2, [1, 9e9]), "error", "proposals", "video_01, index 2", "no segment of a video"),
    "proposal of text": (segment(2, ["1", "2"]), "error", "proposals", "not a proposal", "video_01, index 2"),
    "no list of proposals": (
        proposals(lambda results: results.update(video_01="x")),
        *("error", "proposals", "not a list", "video_01"),
    ),
    "a video without proposals": (
        proposals(lambda results: results.pop("video_01")),
        *("note", "proposals", "1 video without a proposal, not trained on: video_01"),
    ),
    "proposals of a stranger": (
        proposals(lambda results: results.update(stranger=[])),
        *("note", "proposals", "1 video not annotated", "stranger"),
    ),
    "proposals of the other split": (
        proposals(lambda results: results.update(video_07=results["video_01"][:1])),
        *("note", "proposals", "1 video of another subset", "video_07"),
    ),
    "the other split's proposals": (
        lambda r: (r / "Proposals_Tiny_train.json").write_text((r / "Proposals_Tiny_test.json").read_text()),
        *("error", "proposals", "train", "none for 5 videos"),
    ),
    "no proposals": (
        lambda r: (r / "Proposals_Tiny_test.json").unlink(),
        "error",
        "proposals",
        "no such file",
        "README",
    ),
    "not JSON": (
        lambda r: (r / "Proposals_Tiny_test.json").write_text('{"results": {'),
        *("error", "proposals", "JSON", "line 1"),
    ),
}


def test_a_sound_dataset_has_neither_notes_nor_errors(capsys, root):
    status, found = check(capsys, root)
    assert status == 0 and {level for level, *_ in found} == {"ok"}
    text = " | ".join(lines(found, "ok"))
    for piece in (
        "8 videos, 2 classes, 16 instances",
        "[T, 8] of float32",
        "train: 45 (min 9, median 9, max 9",
        "5 of 5",
    ):
        assert piece in text
    for piece in ("5 of 5 train videos have features", "3 of 3 test videos have features"):
        assert piece in lines(found, "ok", "features")
    fine = lines(found, "ok", "annotations")
    balance = "5 videos; videos of a class: min 2 (throw), median 2.5, max 3 (jump)"
    assert f"train is 'validation': {balance}" in fine and "every instance lies inside its video" in fine
    assert any(text.startswith("W-TALC's files in ") for text in fine)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found_and_the_rest_is_checked_all_the_same(capsys, root, case):
    spoil, level, topic, *words = WRONG[case]
    _, before = check(capsys, root)
    spoil(root)
    _, after = check(capsys, root)
    fatal = case in ("subset too short", "video twice")  # no annotations: nothing to check against
    inside = "every instance lies inside its video" in lines(after, "ok")
    assert fatal or inside == (case not in ("negative", "zero length", "beyond"))
    new = [text for text in lines(after, level, topic) if (level, topic, text) not in before]
    assert any(all(word in text for word in words) for text in new)
    assert level == "error" or not lines(after, "error")
    assert {topic for _, topic, _ in after} == ({"annotations"} if fatal else {"annotations", "features", "proposals"})
    assert fatal == any("not this time" in text for text in lines(after, "note"))
    assert all(" - " in text for text in lines(after, "error"))  # what to do


def test_all_problems_at_once_are_all_found(capsys, root):
    cases = ("NaN", "unknown class", "reversed proposal", "no such subset", "a stranger's features", "zero length")
    feature(poisoned(np.nan), "video_02")(root)
    for case in cases:
        WRONG[case][0](root)
    _, found = check(capsys, root)
    for case in cases:
        _, level, topic, *words = WRONG[case]
        assert any(all(w in text for w in words) for text in lines(found, level, topic)), case
    (line,) = (text for text in lines(found, "error", "features") if "NaN" in text)
    assert "video_00; video_02" in line  # one line for all videos with the same problem


def rewrite(root, kind):
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


def test_a_file_without_its_other_stream_is_not_called_a_stranger(capsys, root):
    rewrite(root, "two")
    (root / "flow" / "video_03.npz").unlink()
    _, found = check(capsys, root)
    assert "1 file not read: RGB or flow of that video is missing: video_03.npz" in lines(found, "note", "features")


def test_files_of_two_types_are_counted_by_type(capsys, root):
    feature(lambda a: a.astype(np.float64))(root)
    _, found = check(capsys, root)
    (line,) = (text for text in lines(found, "ok", "features") if "files" in text)
    assert "float64 (1)" in line and "float32 (7)" in line


def test_a_joint_array_of_another_number_of_videos_is_one_error(capsys, root):
    rewrite(root, "joint")
    change(root / "Tiny-I3D-JOINTFeatures.npy", lambda a: a[:-1])
    _, found = check(capsys, root)
    (line,) = lines(found, "error")
    assert "7 videos" in line and "of 8" in line


def test_a_row_of_a_joint_array_that_is_no_array_is_named(capsys, root):
    rewrite(root, "joint")
    change(root / "Tiny-I3D-JOINTFeatures.npy", replaced(0, None))
    _, found = check(capsys, root)
    (line,) = lines(found, "error")
    assert "video_00" in line


def test_flow_of_another_length_than_rgb_is_named(capsys, root):
    rewrite(root, "two")
    np.savez(root / "flow" / "video_03.npz", np.ones((3, 4)))
    _, found = check(capsys, root)
    (line,) = lines(found, "error")
    assert "RGB and flow have" in line and "video_03" in line


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
    _, found = check(capsys, root)
    (line,) = lines(found, "error", "features")
    assert "no one rate fits" in line
    for i in range(8):
        feature(lambda a: a[:10], f"video_{i:02d}")(root)
    _, found = check(capsys, root, "Tiny", "--feature_size", "8")
    assert any("rescaled to one length" in text for text in lines(found, "error", "features"))


def test_proposals_beyond_t_are_an_error_only_where_no_duration_vouches_for_them(capsys, root):
    feature(lambda a: a[:5])(root)
    _, found = check(capsys, root)
    (line,) = lines(found, "note", "proposals")
    assert "beyond T" in line and line.endswith("video_00")
    annotation("duration", replaced(0, np.nan))(root)
    _, found = check(capsys, root)
    (line,) = lines(found, "error", "proposals")
    assert "beyond T" in line and "video_00 - proposals and features must share feature_fps" in line


def instances_of(root, segments, duration_s=np.nan):
    """Give video_06 other segments, and every video without one of its own no duration."""
    count = len(segments)
    for name, value in (("segments", segments), ("labels", ["jump"] * count)):
        annotation(name, replaced(6, value))(root)
    annotation("duration", lambda a: np.where(np.arange(len(a)) == 6, duration_s, a))(root)


INSIDE = "every instance lies inside its video"


@pytest.mark.parametrize("duration_s", [np.nan, np.inf, 0.0])
def test_without_a_duration_instances_are_measured_by_t_and_a_last_partial_snippet(capsys, root, duration_s):
    longest_s = (len(np.load(root / "Tiny-I3D-JOINTFeatures" / "video_06.npy")) + 1) * 16 / 25
    instances_of(root, [[1.0, longest_s]], duration_s)
    assert INSIDE in lines(check(capsys, root)[1], "ok")
    instances_of(root, [[1.0, longest_s + 0.5]], duration_s)
    _, found = check(capsys, root)
    (line,) = (text for text in lines(found, "note", "annotations") if "instance" in text)
    assert line.startswith(
        "1 instance in 1 video with the end beyond the video, by up to 0.50 s: video_06 - no duration"
    )
    assert INSIDE not in lines(found, "ok")


def test_instances_of_a_video_of_unknown_length_are_not_called_sound(capsys, root):
    instances_of(root, [[1.0, 2.0], [1.0, 5000.0]])
    (root / "Tiny-I3D-JOINTFeatures" / "video_06.npy").unlink()
    _, found = check(capsys, root)
    what = "2 instances in 1 video of unknown length, not checked against it: video_06"
    assert what in lines(found, "note", "annotations") and INSIDE not in lines(found, "ok")


def test_one_of_a_thing_is_said_in_the_singular(capsys, tmp_path):
    root = tiny.write(tmp_path / "data", videos=2, classes=("jump",), proposals=2)
    profile(snippet_stride=1, feature_fps=25 / 16)(root)
    dataset.main(["check", "--dataset_name", "Tiny", "--dataset_root", str(root)])
    out = capsys.readouterr().out
    for words in (
        "1.5625 frames a second, 1 frame a snippet",
        "1 class,",
        "1 of 1 train video has",
        "1 of them repeats",
    ):
        assert words in out


def test_names_from_files_reach_the_terminal_as_plain_text_on_one_line():
    written = []
    findings = Findings(written.append)
    findings.add("note", "features", "a\x1b[31m\nname\u202e")
    findings.problems("features", [InputError("bad", f"FILE, v{i}", "mend it") for i in range(9)])
    findings.problems("features", [InputError(f"bad {i}", f"FILE, v{i}", "mend it") for i in range(20)])
    assert written[0] == "note   features     a\\x1b[31m name\\u202e"
    assert written[1] == "error  features     bad (FILE, v0; v1, v2, v3, v4, v5 and 3 more) - mend it"
    assert len(written) == 2 + 8 + 1 and "12 more" in written[-1]
    assert findings.close() == 2 and written[-1] == "\n0 ok, 1 note, 10 errors"


def test_annotations_in_csv_and_json_are_checked_row_by_row(capsys, root):
    names = [f"video_{i:02d}" for i in range(8)]
    for path in (root / "Tiny-Annotations").iterdir():
        path.unlink()
    (root / "Tiny-Annotations").rmdir()
    rows = [f"{v},{'validation' if i < 5 else 'test'},{('jump', 'throw')[i % 2]},1,2" for i, v in enumerate(names)]
    (root / "a.csv").write_text("\n".join(["video,subset,label,start,end", *rows, "x,test,jump,one,2", ",,,,"]) + "\n")
    _, found = check(capsys, root)
    errors = lines(found, "error")
    assert any(text.startswith("a CSV in ") for text in lines(found, "note"))
    assert len(errors) == 2 and "'one'" in errors[0] and "line 10" in errors[0] and "line 11" in errors[1]
    (root / "a.csv").unlink()
    database = {
        v: {"subset": "validation" if i < 5 else "test", "annotations": [{"segment": [1, 2], "label": "jump"}]}
        for i, v in enumerate(names)
    }
    database["x"], database["y"] = {"subset": 3, "annotations": [{}]}, 7
    (root / "a.json").write_text(json.dumps({"database": database}))
    _, found = check(capsys, root)
    assert any(text.startswith("ActivityNet's JSON in ") for text in lines(found, "note"))
    (error,) = lines(found, "error", "annotations")
    assert "not an ActivityNet entry" in error and error.count("x; y") == 1


def test_real_gtea_is_sound(shared, capsys):
    status, found = check(capsys, shared / "data" / "GTEA", "GTEA")
    assert status == 0 and not lines(found, "note")
    assert "142 of 142 train videos have features" in lines(found, "ok")


def test_real_thumos_without_features_says_so_and_goes_on(shared, capsys):
    root = shared / "data" / "Thumos14reduced"
    _, found = check(capsys, root, "Thumos14reduced", "--proposals_root", str(root / "proposals_P_w"))
    (error,) = lines(found, "error")
    assert error.startswith("no features")
    notes, fine = " | ".join(lines(found, "note")), " | ".join(lines(found, "ok"))
    for piece in (
        "28 videos with a weak label",
        "1 test video without a label: video_test_0000270",
        "by up to 537.45 s",
    ):
        assert piece in notes
    for piece in (
        "412 videos, 20 classes, 6,365 instances",
        "33,895",
        "31,587",
        "14,305 of them repeat another",
        "96 ambiguous intervals in 36 videos",
    ):
        assert piece in fine


def test_real_activitynet_annotations_are_checked_in_both_forms(shared, capsys):
    for name, words in (
        ("ActivityNet1.2", "8,907 videos, 100 classes"),
        ("ActivityNet1.3", "13,912 videos, 200 classes"),
    ):
        status, found = check(capsys, shared / "data" / name, name)
        assert status == 2 and any(words in text for text in lines(found, "ok"))
        assert not lines(found, "error", "annotations") and f"{name}-I3D-JOINTFeatures.npy" in lines(found, "error")[0]


def test_a_dataset_without_folder_or_profile_is_refused_in_one_line(tmp_path):
    for name in ("Thumos14reduced", "Mine"):
        folder = tmp_path / "none" if name == "Thumos14reduced" else tmp_path
        with pytest.raises(InputError):
            dataset.main(["check", "--dataset_name", name, "--dataset_root", str(folder)])
