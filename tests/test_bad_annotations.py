"""Annotations that are wrong or odd, in each of their forms, through the real training.

Each case ends in the right result or in one line that names the file, with exit status 2; never in a traceback.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.changes import (
    ANNOTATIONS,
    CLASSES,
    DURATION,
    LABELS,
    NPY,
    SEGMENTS,
    SUBSET,
    VIDEOS,
    WEAK,
    all_of,
    array,
    case,
    cut,
    document,
    ends_well,
    entry,
    make_sound,
    remove,
    setting,
    train,
    write,
)
from tests.outcome import refused

pytestmark = pytest.mark.usefixtures("hurried")


ANNOTATION = [
    case("bytes", all_of(*(array(p, lambda a: a.astype("S")) for p in NPY[:3])), same=True),
    case("objects", all_of(*(array(p, lambda a: tiny.objects(a.tolist())) for p in NPY[:3])), same=True),
    case("no duration", remove(DURATION), same=True),
    case("a duration of NaN", array(DURATION, lambda a: a * np.nan), same=True),
    case("an infinite duration", array(DURATION, lambda a: a * np.inf), same=True),
    case("a negative duration", array(DURATION, lambda a: -a), "video_00", "a video of -17.280 s"),
    case("a duration of 0", array(DURATION, lambda a: 0 * a), "video_00", "a video of 0.000 s"),
    case("a complex duration", array(DURATION, lambda a: a + 1j), "duration"),
    case("a duration in words", array(DURATION, lambda a: a.astype("U")), same=True),
    case("a class twice", array(CLASSES, lambda a: np.asarray(["jump", "throw", "jump"])), "'jump'", "twice"),
    case("an unknown class",
         array(CLASSES, lambda a: np.asarray(["jump", "run"])), "unknown class 'throw'", "video_01"),
    case("a class nobody has", array(CLASSES, lambda a: np.asarray(["jump", "run", "throw"])), "'run'", "no training"),
    case("no class", array(CLASSES, lambda a: a[:0]), "no class", ANNOTATIONS),
    case("a class that no instance has", entry(LABELS, 0, ["hop", "hop"]), "unknown class 'hop'", "video_00"),
    case("a video twice", array(VIDEOS, lambda a: np.asarray([*a[:-1], a[0]])), "video_00", "twice"),
    case("no training video", array(SUBSET, lambda a: np.asarray(["test"] * 6)), "no video in subset 'validation'"),
    case("no test video", array(SUBSET, lambda a: np.asarray(["validation"] * 6)), "no video in subset 'test'"),
    case("another subset", array(SUBSET, lambda a: np.asarray(["Test"] * 6)), "no video in subset"),
    case("no label at all", array(WEAK, lambda a: tiny.objects([[]] * 6)), "no training video"),
    case("one video without label", entry(WEAK, 0, []), log=["1 train videos have no label"]),
    case("a label twice", entry(WEAK, 0, ["jump", "jump"]), same=True),
    case("a label that is a list", entry(WEAK, 0, [["jump"], ["throw"]])),
    case("a label that is None", entry(WEAK, 0, None), "labels_all.npy", "None is no name"),
    case("a label that is a number", entry(WEAK, 0, [1.5]), "labels_all.npy", "1.5 is no name"),
    case("segments in reverse", entry(SEGMENTS, 0, [[2, 1], [3, 4]]), "segments.npy, video_00", "before it starts"),
    case("segments of NaN", entry(SEGMENTS, 0, [[0, math.nan], [3, 4]]), "segments.npy, video_00"),
    case("segments of Inf", entry(SEGMENTS, 0, [[0, math.inf], [3, 4]]), "segments.npy, video_00"),
    case("negative segments", entry(SEGMENTS, 5, [[-3, -1], [3, 4]]), "video_05", "before its video"),
    case("segments of one time", entry(SEGMENTS, 0, [[1], [2]]), "segments.npy, video_00"),
    case("segments of three times", entry(SEGMENTS, 0, [[1, 2, 3], [4, 5, 6]]), "segments.npy, video_00"),
    case("segments in a flat list", entry(SEGMENTS, 0, [1, 2]), "segments.npy, video_00"),
    case("segments of text", entry(SEGMENTS, 0, [["a", "b"], ["c", "d"]]), "segments.npy, video_00"),
    case("segments that are a number", entry(SEGMENTS, 0, 3.0), "segments.npy, video_00"),
    case("segments that are None", entry(SEGMENTS, 0, None), "segments.npy, video_00"),
    case("segments that are text", entry(SEGMENTS, 0, "ab"), "segments.npy, video_00"),
    case("segments lost", entry(SEGMENTS, 0, []), "segments.npy, video_00", "0 segments and 2 labels"),
    case("one segment lost", entry(SEGMENTS, 0, [[0, 1]]), "segments.npy, video_00", "1 segments and 2 labels"),
    case("segments beyond the video", entry(SEGMENTS, 5, [[1000, 2000], [3, 4]])),
    case("segments in digits", entry(SEGMENTS, 0, [["1", "2"], "34"]), "segments.npy, video_00", "not pairs"),
    case("segments of truth values", entry(SEGMENTS, 0, [[False, True]] * 2), "segments.npy, video_00", "not pairs"),
    case("segments as an object", entry(SEGMENTS, 0, [{3: 1, 7: 2}] * 2), "segments.npy, video_00", "not pairs"),
    case("segments in arrays", array(SEGMENTS, lambda a: tiny.objects([np.asarray(x) for x in a])), same=True),
    case("a segment twice", entry(SEGMENTS, 0, [[1, 2]] * 2)),
    case("segments of no length", entry(SEGMENTS, 5, [[1, 1], [2, 2]])),
]  # fmt: skip


@pytest.mark.parametrize("case", ANNOTATION)
def test_annotations_that_say_odd_things(sound, tmp_path, case):
    ends_well(sound, tmp_path, case)


@pytest.mark.parametrize(
    "change",
    [
        all_of(*(entry(p, i, []) for p in (LABELS, SEGMENTS) for i in (4, 5))),
        setting(excluded_videos=["video_04", "video_05"]),
    ],
)
def test_without_ground_truth_a_run_trains_and_has_no_map(sound, tmp_path, change):
    root = Path(shutil.copytree(sound[0], tmp_path / "tiny"))
    change(root)
    found = train(root, tmp_path, "--interval", "1", epochs=2)
    assert found.status == 0, found.log
    last = json.loads((tmp_path / "run" / "results.json").read_text())["last"]
    assert last["mAP"] == [None] * 7 and set(last["average"].values()) == {None} and last["AP"] == {}
    assert len((tmp_path / "run" / "mAP-results.log").read_text().splitlines()) == 3


AMBIGUOUS = f"{ANNOTATIONS}/Ambiguous_test.txt"
INTERVALS = [
    case("of other videos", write(AMBIGUOUS, "video_99 1 2\n\n"), same=True),
    case("of training videos", write(AMBIGUOUS, "video_00 0 100\n"), same=True),
    case("over a whole video", write(AMBIGUOUS, "video_04 0 1000\n")),
    case("empty", write(AMBIGUOUS, ""), same=True),
    case("in reverse", write(AMBIGUOUS, "video_04 5 1\n"), "Ambiguous_test.txt, line 1"),
    case("one time", write(AMBIGUOUS, "video_04 1\n"), "Ambiguous_test.txt, line 1"),
    case("three times", write(AMBIGUOUS, "video_99 1 2\nvideo_04 1 2 3\n"), "Ambiguous_test.txt, line 2"),
    case("words", write(AMBIGUOUS, "video_04 one two\n"), "Ambiguous_test.txt, line 1"),
    case("NaN", write(AMBIGUOUS, "video_04 nan 2\n"), "Ambiguous_test.txt, line 1"),
    case("Inf", write(AMBIGUOUS, "video_04 0 inf\n"), "Ambiguous_test.txt, line 1"),
    case("zeros", write(AMBIGUOUS, b"\0" * 100), "Ambiguous_test.txt"),
    case("another kind of file", write(AMBIGUOUS, b"\x93NUMPY\xff\xfe"), "Ambiguous_test.txt"),
    case("cut in a number", write(AMBIGUOUS, "video_04 1.5 10"), "Ambiguous_test.txt", "does not end"),
]


@pytest.mark.parametrize("case", INTERVALS)
def test_ambiguous_intervals_of_every_kind(sound, tmp_path, case):
    ends_well(sound, tmp_path, case)


def as_json(root):
    """The annotations in ActivityNet's form."""
    columns = {name: np.load(root / ANNOTATIONS / f"{name}.npy", allow_pickle=True) for name in COLUMNS}
    database = {}
    for video, subset, duration_s, labels, segments in zip(*(columns[name].tolist() for name in COLUMNS)):
        found = [{"segment": s, "label": label} for s, label in zip(segments, labels)]
        database[video] = {"subset": subset, "duration": duration_s, "annotations": found}
    (root / JSON).write_text(json.dumps({"database": database}))
    shutil.rmtree(root / ANNOTATIONS)


def as_csv(root):
    as_json(root)
    lines = ["video,subset,label,start,end,duration"]
    for name, entry_ in json.loads((root / JSON).read_text())["database"].items():
        for a in entry_["annotations"]:
            fields = [name, entry_["subset"], a["label"], *a["segment"], entry_["duration"]]
            lines.append(",".join(map(str, fields)))
    (root / JSON).unlink()
    (root / CSV).write_text("\n".join(lines) + "\n")


JSON, CSV = "annotations.json", "annotations.csv"
COLUMNS = ("videoname", "subset", "duration", "labels", "segments")


@pytest.fixture(scope="module")
def sound_json(tmp_path_factory):
    return make_sound(tmp_path_factory.mktemp("json"), as_json)


@pytest.fixture(scope="module")
def sound_csv(tmp_path_factory):
    return make_sound(tmp_path_factory.mktemp("csv"), as_csv)


def test_results_do_not_depend_on_the_form_of_annotations(sound, sound_json, sound_csv):
    assert sound.results == sound_json.results == sound_csv.results


def video(**values):
    """Change the first video of the JSON."""
    return document(JSON, lambda d: d["database"]["video_00"].update(values))


def instance(**values):
    return document(JSON, lambda d: d["database"]["video_04"]["annotations"][1].update(values))


def without(key):
    return document(JSON, lambda d: d["database"]["video_00"].pop(key) and None)


ODD = (JSON, "video_00", "not an ActivityNet entry")
NO_PAIRS = (JSON, "video_00", "segments are not pairs of finite seconds")
IN_JSON = [
    *[case(f"cut {n}", cut(JSON, n), JSON) for n in range(6)],
    case("empty", write(JSON, ""), JSON),
    case("no database", document(JSON, lambda d: {"videos": d["database"]}), JSON, "'database'"),
    case("an empty database", document(JSON, lambda d: {"database": {}}), JSON, "no "),
    case("a list of videos", document(JSON, lambda d: {"database": [d]}), JSON, "'database'"),
    case("a video that is null", document(JSON, lambda d: d["database"].update(video_00=None)), *ODD),
    case("a video that is a list", document(JSON, lambda d: d["database"].update(video_00=[1])), *ODD),
    case("a video twice", lambda root: write(JSON, (root / JSON).read_text().replace("video_01", "video_00"))(root),
         JSON, "twice", "video_00"),
    case("no subset", without("subset"), *ODD),
    case("a subset that is null", video(subset=None), *ODD),
    case("no duration", without("duration"), same=True),
    case("a duration in words", video(duration="long"), *ODD),
    case("a duration that is null", video(duration=None), *ODD),
    case("a negative duration", video(duration=-5), "video_00", "-5.000 s"),
    case("no annotations", without("annotations"), log=["1 train videos have no label"]),
    case("annotations that are null", video(annotations=None), *ODD),
    case("annotations that are text", video(annotations="jump"), *ODD),
    case("an annotation without label", video(annotations=[{"segment": [1, 2]}]), *ODD),
    case("a label that is null", video(annotations=[{"segment": [1, 2], "label": None}]), *ODD),
    case("a label that is a list", video(annotations=[{"segment": [1, 2], "label": ["jump"]}]), *ODD),
    case("a segment of one time", video(annotations=[{"segment": [1], "label": "jump"}]), JSON, "video_00"),
    case("a segment of three times", video(annotations=[{"segment": [1, 2, 3], "label": "jump"}]), JSON, "video_00"),
    case("a segment of text", video(annotations=[{"segment": ["a", "b"], "label": "jump"}]), JSON, "video_00"),
    case("a segment that is a number", video(annotations=[{"segment": 3, "label": "jump"}]), *NO_PAIRS),
    *[case(f"a segment that is {json.dumps(s)}"[:40], video(annotations=[{"segment": s, "label": "jump"}]), *NO_PAIRS)
      for s in ("12", {"3": 1, "7": 2}, ["1", "2"], [False, True], [[1], [2]], [0, 10**300], [])],
    *[case(f"a duration that is {json.dumps(d)}"[:40], video(duration=d), *ODD)
      for d in (True, "17.28", [17.28], 10**300)],
    case("annotations that are an empty object", video(annotations={}), *ODD),
    case("weak labels that are an object", video(weak_labels={"jump": 1}), *ODD),
    case("a segment of null", video(annotations=[{"segment": [None, 3], "label": "jump"}]), JSON, "video_00"),
    case("a segment in reverse", instance(segment=[3, 1]), JSON, "video_04", "before it starts"),
    case("a negative segment", instance(segment=[-3, 1]), JSON, "video_04", "before its video"),
    case("a segment beyond the video", instance(segment=[1000, 2000])),
    case("a class of the test videos alone", instance(label="hop"), "'hop'", "no training video"),
    case("classes twice", document(JSON, lambda d: d.update(classes=["jump", "jump", "throw"])), JSON, "twice"),
    case("classes without one", document(JSON, lambda d: d.update(classes=["jump"])), JSON, "unknown class 'throw'"),
    case("classes that are numbers", document(JSON, lambda d: d.update(classes=[1, 2])), JSON, "'classes'"),
    case("classes in order", document(JSON, lambda d: d.update(classes=["jump", "throw"])), same=True),
    case("weak labels that are a number", video(weak_labels=3), *ODD),
    case("weak labels that are one name", video(weak_labels="jump"), same=True),
    case("weak labels of none", video(weak_labels=[]), log=["1 train videos have no label"]),
    case("another JSON beside it", write("more.json", "{}"), "annotations.json, more.json"),
]  # fmt: skip


@pytest.mark.parametrize("case", IN_JSON)
def test_annotations_in_json(sound_json, tmp_path, case):
    ends_well(sound_json, tmp_path, case)


def table(how):
    """Change the lines of the CSV."""

    def change(root):
        lines = (root / CSV).read_text().splitlines()
        (root / CSV).write_text("\n".join(how(lines)) + "\n")

    return change


def line(text, number=1):
    return table(lambda lines: [*lines[:number], text, *lines[number + 1 :]])


def encoded(how):
    return lambda root: (root / CSV).write_bytes(how((root / CSV).read_text()))


IN_CSV = [
    case("empty", write(CSV, ""), CSV, "columns are missing"),
    case("a head alone", table(lambda lines: lines[:1]), CSV, "no "),
    case("no head", table(lambda lines: lines[1:]), CSV, "columns are missing"),
    case("semicolons", table(lambda lines: [x.replace(",", ";") for x in lines]), CSV, "columns are missing"),
    case("a quote that never ends", line('"video_00,validation,jump,1,2,10'), CSV),
    case("too many fields", line("video_00,validation,jump,1,2,10,11"), CSV, "line 2"),
    case("too few fields", line("video_00"), CSV, "line 2"),
    case("no video", line(",validation,jump,1,2,10"), CSV, "line 2"),
    case("no subset", line("video_00,,jump,1,2,10"), CSV, "line 2"),
    case("two subsets", line("video_00,test,jump,1,2,10"), CSV, "two subsets"),
    case("no end", line("video_00,validation,jump,1,,10"), CSV, "line 2"),
    case("times in words", line("video_00,validation,jump,one,two,10"), CSV, "line 2"),
    case("times of NaN", line("video_00,validation,jump,nan,2,17.28"), CSV, "video_00"),
    case("times of Inf", line("video_00,validation,jump,0,inf,17.28"), CSV, "video_00"),
    case("times in reverse", line("video_00,validation,jump,2,1,17.28"), CSV, "video_00", "before it starts"),
    case("negative times", line("video_00,validation,jump,-2,1,17.28"), CSV, "video_00", "before its video"),
    case("some rows without times", line("video_00,validation,jump,,,17.28"), CSV, "video_00"),
    case("times and no label", line("video_00,validation,,1,2,17.28"), f"{CSV}, line 2", "times and no label"),
    case("a row twice", table(lambda lines: [*lines, lines[1]]), f"{CSV}, line 14", "the row stands twice"),
    case("a row twice, written in another way",
         table(lambda lines: [*lines, "video_00 ,validation,jump,1,2.50,17.28", "video_00,validation,jump,1.0,2.5,"]),
         f"{CSV}, line 15", "the row stands twice"),
    case("blanks around cells", table(lambda lines: [x.replace(",", " ,\t") + " " for x in lines]), same=True),
    case("a column in capitals", line("video,subset,label,Start,End,duration", 0), CSV, "'Start'", "'start'"),
    case("a column with a blank in it", line("video,subset,label,st art,end,duration", 0), CSV, "'st art'", "'start'"),
    case("a column twice", line("video,subset,label,start,end,start", 0), CSV, "'start' stands twice"),
    case("two columns without a name", table(lambda lines: [x + ",," for x in lines]), same=True),
    case("two durations", line("video_00,validation,jump,1,2,12"), CSV, "video_00", "two durations"),
    case("durations of NaN", table(lambda lines: [x.replace(",17.28", ",nan") for x in lines]), same=True),
    case("columns in another order", table(lambda lines: [",".join(x.split(",")[::-1]) for x in lines]), same=True),
    case("a column more", table(lambda lines: [x + ",note" for x in lines]), same=True),
    case("no last end of line", encoded(lambda text: text.rstrip().encode()), CSV, "the last line does not end"),
    case("Windows' ends of line", encoded(lambda text: text.replace("\n", "\r\n").encode()), same=True),
    case("a byte order mark", encoded(lambda text: text.encode("utf-8-sig")), same=True),
    case("empty lines", table(lambda lines: [x for pair in zip(lines, [""] * 99) for x in pair]), same=True),
    case("UTF-16", encoded(lambda text: text.encode("utf-16")), CSV, "UTF-8"),
    case("Latin-1", encoded(lambda text: text.replace("jump", "sauté").encode("latin-1")), CSV, "UTF-8"),
    case("zeros", encoded(lambda text: b"\0" * 1000), CSV),
    case("a field of 200,000 letters", line("video_00,validation," + "x" * 200_000 + ",1,2,10"), CSV),
]  # fmt: skip


@pytest.mark.parametrize("case", IN_CSV)
def test_annotations_in_csv(sound_csv, tmp_path, case):
    ends_well(sound_csv, tmp_path, case)


@pytest.mark.parametrize("number", range(12))
def test_a_csv_cut_short_is_named_or_is_a_shorter_csv(sound_csv, tmp_path, number):
    """Whole rows that are lost cannot be missed; half a row must not end in half a number."""
    root = Path(shutil.copytree(sound_csv.root, tmp_path / "tiny"))
    whole = (root / CSV).read_text().splitlines()
    cut(CSV, number)(root)
    found = train(root, tmp_path)
    if found.status:
        refused(found, "annotation")
    else:
        left = (root / CSV).read_text().splitlines()
        assert left == whole[: len(left)], "a row cut short was read as a whole one"
