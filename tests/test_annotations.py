"""Annotations in every form: the same from each, odd ones understood or named by file and video."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from utils.datasets.annotations import read_ambiguous, read_annotations, write_annotations
from utils.datasets.profile import PROFILES, Profile
from utils.errors import InputError

# ---- real annotations -----------------------------------------------------------------------------------------------


def test_real_thumos14(shared):
    annotations, instances, ambiguous_s, problems, _ = read_annotations(
        shared / "data" / "Thumos14reduced" / "Thumos14reduced-Annotations"
    )
    assert not problems and (len(annotations.videos), len(annotations.classes)) == (412, 20)
    assert len(annotations.of("validation")) == 200 and len(annotations.of("test")) == 212
    subset = np.asarray(annotations.subset)[instances.video]
    assert ((subset == "validation").sum(), (subset == "test").sum()) == (3007, 3358)
    assert annotations.labels[annotations.videos.index("video_test_0000270")] == ()
    strong = [set(instances.label[instances.video == i].tolist()) for i in range(412)]
    assert sum(set(w) != s for w, s in zip(annotations.labels, strong)) == 28  # the weak label is kept as it is
    assert len(ambiguous_s) == 36
    usual = read_annotations(shared / "data" / "Thumos14reduced" / "points" / "gt.json", PROFILES["Thumos14reduced"])
    assert not usual.problems and len(usual.annotations.classes) == 20 and len(usual.instances.video) == 6318
    assert np.isnan(usual.annotations.duration_s).all() and "'train' is taken as 'validation'" in usual.notes[0]
    assert len(usual.annotations.of("validation")) == 200 and len(usual.annotations.of("test")) == 210


def test_real_activitynet_in_both_forms(shared):
    read = read_annotations(shared / "data" / "ActivityNet1.3" / "ActivityNet1.3-Annotations")
    sizes = [len(read.annotations.videos), len(read.annotations.classes), len(read.annotations.of("training"))]
    assert not read.problems and sizes == [13912, 200, 9337]
    rows = np.c_[read.instances.video, read.instances.label, read.instances.segment_s]
    assert (len(rows), len(rows) - len(np.unique(rows, axis=0))) == (21434, 44)  # repeated ones are kept
    read = read_annotations(shared / "data" / "ActivityNet1.2" / "activity_net.v1-2.min-missing-removed.json")
    assert len(read.annotations.classes) == 100 and len(read.annotations.of("validation")) == 2198


COLUMNS = ("classlist", "videoname", "subset", "labels_all", "labels", "segments", "duration")


def folder(root: Path) -> Path:
    return (root if root.exists() and any(root.iterdir()) else tiny.write(root)) / "Tiny-Annotations"


def document(root: Path) -> dict:
    """The tiny dataset as ActivityNet's JSON."""
    names = ("videoname", "subset", "duration", "labels", "segments")
    columns = [np.load(folder(root) / f"{name}.npy", allow_pickle=True).tolist() for name in names]
    database = {}
    for video, subset, duration_s, labels, segments in zip(*columns):
        pairs = [{"segment": segment, "label": label} for segment, label in zip(segments, labels)]
        database[video] = {"subset": subset, "duration": duration_s, "annotations": pairs}
    return {"database": database}


def table(root: Path) -> str:
    lines = ["video,subset,label,start,end,duration"]
    for video, entry in document(root)["database"].items():
        for a in entry["annotations"]:
            fields = [video, entry["subset"], a["label"], *a["segment"], entry["duration"]]
            lines.append(",".join(map(str, fields)))
    return "\n".join(lines) + "\n"


@pytest.fixture
def read_json(tmp_path):
    """Reads the tiny dataset as JSON after a change to the document."""

    def read(change=lambda document: None):
        value = document(tmp_path / "tiny")
        (tmp_path / "a.json").write_text(json.dumps(change(value) or value))
        return read_annotations(tmp_path / "a.json")

    return read


@pytest.fixture
def read_csv(tmp_path):
    """Reads the tiny dataset as CSV after a change to its text."""

    def read(change=lambda text: text):
        text = change(table(tmp_path / "tiny"))
        (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_annotations(tmp_path / "a.csv")

    return read


def assert_same(a, b):
    assert not a.problems and not b.problems
    for name in ("classes", "videos", "subset", "labels"):
        assert getattr(a.annotations, name) == getattr(b.annotations, name)
    np.testing.assert_allclose(a.annotations.duration_s, b.annotations.duration_s)
    for name in ("video", "segment_s", "label"):
        np.testing.assert_allclose(getattr(a.instances, name), getattr(b.instances, name))


def test_the_three_forms_agree_and_come_back_from_the_folder(tmp_path, read_json, read_csv):
    plain = read_annotations(folder(tmp_path / "x"))
    assert_same(read_json(), plain)
    assert_same(read_csv(), plain)
    intervals = {"video_03": np.asarray([[1, 2.5]])}
    write_annotations(tmp_path / "new", plain.annotations, plain.instances, intervals)
    again = read_annotations(tmp_path / "new")
    assert_same(again, plain)
    assert again.ambiguous_s["video_03"].tolist() == [[1, 2.5]]


def times_of(ambiguous_s):
    return {video: times.tolist() for video, times in ambiguous_s.items()}


def wrong(read, *words):
    """The one error of a reader, returned or raised."""
    try:
        (problem,) = read().problems
    except InputError as error:
        problem = error
    assert all(word in str(problem) for word in words), problem


# ---- folder ---------------------------------------------------------------------------------------------------------

CLASSES, VIDEOS, SUBSET, WEAK, LABELS, SEGMENTS, DURATION = COLUMNS


def entry(value, index=0):
    return lambda values: tiny.objects([*values[:index], value, *values[index + 1 :]])


FOLDER = [
    (DURATION, lambda a: a[:-1], ["7 duration for 8 videos"]),
    (DURATION, lambda a: tiny.objects(["long"] * 8), ["not a list of seconds"]),
    (CLASSES, lambda a: np.asarray(["jump", "throw", "jump"]), ["duplicate class 'jump'"]),
    (CLASSES, lambda a: a[:0], ["no class"]),
    (VIDEOS, lambda a: np.asarray([*a[:-1], a[0]]), ["duplicate video 'video_00'"]),
    (VIDEOS, lambda a: np.float64(3), ["videoname.npy", "one value"]),
    (WEAK, entry(["hop"]), ["unknown class 'hop'", "labels_all.npy, video_00"]),
    (WEAK, entry([1.5]), ["labels_all.npy", "1.5 is no name"]),
    (LABELS, entry(["hop", "hop"]), ["unknown class 'hop'", "video_00"]),
    (SEGMENTS, entry([[2, 1], [3, 4]]), ["segments.npy, video_00", "before it starts"]),
    (SEGMENTS, entry([[-2, 1], [3, 4]]), ["segments.npy, video_00", "before its video"]),
    (SEGMENTS, entry([]), ["0 segments and 2 labels"]),
    *((SEGMENTS, entry(value), ["segments.npy, video_00", "not pairs"]) for value in (
        [[0, math.nan], [3, 4]], [[0, math.inf], [3, 4]], [[1], [2]], None, [["1", "2"], "34"], [[False, True]] * 2,
    )),
]  # fmt: skip


@pytest.mark.parametrize("name, change, words", FOLDER)
def test_wrong_npy_files_are_named(tmp_path, name, change, words):
    path = folder(tmp_path) / f"{name}.npy"
    np.save(path, change(np.load(path, allow_pickle=True)), allow_pickle=True)
    wrong(lambda: read_annotations(path.parent), *words)


SAME = {
    "bytes": ((CLASSES, VIDEOS, SUBSET), lambda a: a.astype("S")),
    "objects": ((CLASSES, VIDEOS, SUBSET), lambda a: tiny.objects(a.tolist())),
    "text": ((DURATION,), lambda a: a.astype("U")),
    "a column": ((DURATION,), lambda a: a[:, None]),
    "repeated": ((WEAK,), lambda a: tiny.objects([[x[0], x[0]] for x in a])),
    "arrays of text": ((SEGMENTS,), lambda a: tiny.objects([np.asarray(x).astype("U") for x in a])),
}


@pytest.mark.parametrize("how", SAME)
def test_other_ways_to_write_the_same(tmp_path, how):
    names, change = SAME[how]
    plain = read_annotations(folder(tmp_path))
    for path in (folder(tmp_path) / f"{name}.npy" for name in names):
        np.save(path, change(np.load(path, allow_pickle=True)), allow_pickle=True)
    assert_same(read_annotations(folder(tmp_path)), plain)


def test_a_folder_without_durations_and_one_without_a_needed_file(tmp_path):
    place = folder(tmp_path)
    (place / "duration.npy").unlink()
    assert np.isnan(read_annotations(place).annotations.duration_s).all()
    (place / "labels.npy").unlink()
    wrong(lambda: read_annotations(place), "no such file", "labels.npy", "README")


# ---- JSON -----------------------------------------------------------------------------------------------------------


def video(**values):
    return lambda d: d["database"]["video_00"].update(values)


ODD = ("a.json, video_00", "not an ActivityNet entry")
NO_PAIRS = ("a.json, video_00", "segments are not pairs of finite seconds")
JSON = [
    (lambda d: {"videos": d["database"]}, ["'database'"]),
    (lambda d: {"database": {}}, ["no class"]),
    (lambda d: {"database": [d]}, ["'database'"]),
    (lambda d: {"database": {"video_00": {"subset": "test", "annotations": [{}]}}}, ODD),  # more than "no class" says
    (lambda d: d["database"].update(video_00=None), ODD),
    (lambda d: d["database"]["video_00"].pop("subset") and None, ODD),
    (lambda d: d.update(classes=["jump", "jump", "throw"]), ["duplicate class"]),
    (lambda d: d.update(classes=[1, 2]), ["'classes'"]),
    *((video(**change), ODD) for change in (
        {"subset": None}, {"duration": "long"}, {"duration": True}, {"duration": 10**300}, {"annotations": None},
        {"annotations": [{"segment": [1, 2]}]}, {"weak_labels": 3},
    )),
    *((video(annotations=[{"segment": segment, "label": "jump"}]), NO_PAIRS) for segment in (
        [1, 2, 3], ["a", "b"], "12", {"3": 1, "7": 2}, [0, 10**300],
    )),
    (video(annotations=[{"segment": [3, 1], "label": "jump"}]), ["a.json, video_00", "before it starts"]),
]  # fmt: skip


@pytest.mark.parametrize("change, words", JSON)
def test_wrong_json_is_named(read_json, change, words):
    wrong(lambda: read_json(change), *words)


def test_what_json_may_leave_out_or_say_in_another_way(read_json):
    plain = read_json()
    assert_same(read_json(lambda d: d.update(classes=["jump", "throw"])), plain)
    assert_same(read_json(video(weak_labels="jump")), plain)
    assert_same(read_json(lambda d: json.loads(re.sub("([0-9]+[.][0-9]+)", r'"\1"', json.dumps(d)))), plain)
    bare = read_json(video(annotations=[{"label": "jump"}]))
    assert bare.annotations.labels[0] == (0,) and len(bare.instances.of("video_00")[0]) == 0
    for unknown in ({}, {"duration": None}):
        odd = read_json(lambda d, u=unknown: d["database"].update(v={"subset": "test", "annotations": [], **u}))
        assert np.isnan(odd.annotations.duration_s[-1]) and not odd.problems


# ---- CSV ------------------------------------------------------------------------------------------------------------


def line(text, number=1):
    def change(table):
        lines = table.splitlines()
        return "\n".join([*lines[:number], text, *lines[number + 1 :]]) + "\n"

    return change


FORM = "video,subset,label[,start,end[,duration]]"
CSV = [
    (lambda text: "", ["not a CSV"]),
    (lambda text: text.splitlines()[0], ["no class"]),
    (lambda text: text.split("\n", 1)[1], ["no column video", FORM]),
    (line("video,subset,label,start,end,start", 0), ["duplicate column start"]),
    (line('"video_00,validation,jump,1,2,10'), ["a.csv", "not a CSV"]),
    (line("video_00,validation,jump,1,2,10,11"), ["line 2"]),
    (line("video_00"), ["line 2", "without video or subset"]),
    (line("video_00,test,jump,1,2,10"), ["line 3", "in two subsets"]),
    (line("video_00,validation,jump,1,,17.28"), ["line 2", "start, end and label"]),
    (line("video_00,validation,jump,one,two,17.28"), ["line 2", "one"]),
    (line("video_00,validation,jump,nan,2,17.28"), ["line 2", "start, end and label"]),
    (line("video_00,validation,jump,2,1,17.28"), ["a.csv, video_00", "before it starts"]),
    (line("video_00,validation,jump,,,17.28"), ["a.csv, video_00", "some rows have times"]),
    (line("video_00,validation,jump,1,2,12"), ["line 3", "two durations"]),
    (lambda text: text + text.splitlines()[1] + "\n", ["line 18", "duplicate row"]),
    (lambda text: text.encode("utf-16"), ["UTF-8"]),
    (lambda text: text.replace("jump", "sauté").encode("latin-1"), ["UTF-8"]),
]


@pytest.mark.parametrize("change, words", CSV)
def test_a_wrong_csv_is_named_by_line_or_video(read_csv, change, words):
    wrong(lambda: read_csv(change), *words)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip(),  # no last end of line
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace(",", " ,\t"),
        lambda text: text.replace("start", " Start").replace("video,", "VIDEO ,", 1),
        lambda text: "\n".join(",".join(x.split(",")[::-1]) for x in text.splitlines()),
        lambda text: text.replace("\n", ",,\n"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", ";").replace(".", ","),
    ],
)
def test_other_ways_to_write_the_same_csv(read_csv, change):
    assert_same(read_csv(change), read_csv())


def test_a_csv_of_weak_labels_alone(tmp_path):
    (tmp_path / "a.csv").write_text("video,subset,label\nv,train,jump\nv,train,jump\nv,train, sauté\nw,train,\n")
    read = read_annotations(tmp_path / "a.csv")
    assert read.annotations.labels == ((0, 1), ()) and read.annotations.classes == ("jump", "sauté")
    assert not read.problems and len(read.instances.video) == 0


# ---- THUMOS14's text files ------------------------------------------------------------------------------------------


def test_the_text_files_of_thumos14(tmp_path):
    files = {
        "val/Diving_val.txt": "video_validation_1  1.0 2.5\nvideo_validation_1 3 4\n",
        "val/Shotput_val.txt": "video_validation_2 0.5 1",
        "val/Ambiguous_val.txt": "video_validation_2 5 6\nvideo_validation_9 1 2\n",
        "test/Diving_test.txt": "video_test_1 2 3\n\n",
        "test/Ambiguous_test.txt": "video_test_1 7 8\n",
        "readme.txt": "1 Diving\n2 Shotput",
        "val/._Diving_val.txt": "\0",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    annotations, instances, ambiguous_s, problems, notes = read_annotations(tmp_path, PROFILES["Thumos14reduced"])
    assert not problems and annotations.classes == ("Diving", "Shotput")
    assert annotations.videos == ("video_test_1", "video_validation_1", "video_validation_2")
    assert annotations.subset == ("test", "validation", "validation") and annotations.labels == ((0,), (0,), (1,))
    assert instances.of("video_validation_1")[0].tolist() == [[1, 2.5], [3, 4]] and len(instances.video) == 4
    assert times_of(ambiguous_s) == {"video_test_1": [[7, 8]], "video_validation_2": [[5, 6]]}
    assert len(notes) == 1 and "2 intervals in 2 videos" in notes[0]
    (tmp_path / "val" / "Shotput_val.txt").write_text("video_validation_2 0.5 1\nvideo_validation_2 end\n")
    wrong(lambda: read_annotations(tmp_path), "Shotput_val.txt, line 2", "not 'VIDEO start end'")


# ---- subsets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, expected",  # with "validation" to train and "test" to test
    [
        (["validation", "test"], ["validation", "test"]),
        (["Validation", "Test"], ["validation", "test"]),
        (["val", "testing"], ["validation", "test"]),
        (["train", "test"], ["validation", "test"]),
        (["Training", "val"], ["validation", "test"]),
        (["train", "val", "test"], ["validation", "val", "test"]),
        (["train", "training", "test"], ["train", "training", "test"]),  # which one?
        (["validation", "val"], ["validation", "test"]),
        (["validation", "Test", "testing"], ["validation", "Test", "testing"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_subsets_in_their_usual_spellings(tmp_path, names, expected):
    (tmp_path / "a.csv").write_text("video,subset,label\n" + "".join(f"v{i},{n},x\n" for i, n in enumerate(names)))
    read = read_annotations(tmp_path / "a.csv", Profile())
    assert list(read.annotations.subset) == expected
    assert len(read.notes) == sum(name != new for name, new in zip(names, expected))
    assert list(read_annotations(tmp_path / "a.csv").annotations.subset) == names


@pytest.mark.parametrize("names, train, test", [
    (("training", "validation"), "training", "validation"), (("train", "val"), "train", "val"),
    (("training", "validation", "test"), "training", "test"), (("validation", "test"), "validation", "test"),
])  # fmt: skip
def test_a_subset_of_training_videos_is_trained_on_where_nobody_states_another(tmp_path, names, train, test):
    rows = "".join(f"v{i},{name},jump,0,1\n" for i, name in enumerate(names))
    (tmp_path / "a.csv").write_text("video,subset,label,start,end\n" + rows)
    read = read_annotations(tmp_path / "a.csv", Profile(stated_subsets=False))
    for role, wanted in ((train, "validation"), (test, "test")):
        assert [names[i] for i in read.annotations.of(wanted)] == [role]
    stated = read_annotations(tmp_path / "a.csv", Profile("validation", "test"))
    assert [names[i] for i in stated.annotations.of("validation")] == ["validation" if "validation" in names else train]


# ---- ambiguous intervals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_class_ambiguous_is_none_but_the_filter(read_csv, read_json, form):
    plain = read_csv()
    if form == "csv":
        read = read_csv(lambda text: text + "video_07,test,Ambiguous,1,2,\nvideo_00,validation,Ambiguous,0,1.5,\n")
    else:
        read = read_json(lambda d: [
            d["database"][video]["annotations"].insert(0, {"segment": times, "label": "Ambiguous"})
            for video, times in (("video_07", [1, 2]), ("video_00", [0, 1.5]))
        ] and None)  # fmt: skip
    assert_same(read, plain)
    assert times_of(read.ambiguous_s) == {"video_00": [[0, 1.5]], "video_07": [[1, 2]]}
    assert "'Ambiguous' is no action class: 2 intervals in 2 videos" in read.notes[0] and not plain.notes


def test_ambiguous_intervals(tmp_path):
    path = tmp_path / "Ambiguous_test.txt"
    assert read_ambiguous(path, ["v"]) == {}
    path.write_text("v 1 2\n\nother 3 4\nv 5.5 6")  # the last line need not end
    assert read_ambiguous(path, ["v", "w"])["v"].tolist() == [[1, 2], [5.5, 6]]
    for text in ("v 5 1", "v 1", "v 1 2 3", "v one two", "v nan 2", "v 0 inf", "\0" * 9):
        path.write_text(f"v 1 2\n{text}\n")
        with pytest.raises(InputError, match="Ambiguous_test.txt, line 2"):
            read_ambiguous(path, ["v"])
