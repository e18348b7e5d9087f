"""Input that is wrong in every way we could think of, for every kind of file, through the real commands.

Each case ends in the right result or in one line that names the file, with exit status 2; never in a traceback.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests import tiny
from tests.outcome import outcome, refused
from utils import files
from utils.seeds import stream

ANNOTATIONS, FEATURES = "Tiny-Annotations", "Tiny-I3D-JOINTFeatures"
TRAIN, TEST, PROFILE = "Proposals_Tiny_train.json", "Proposals_Tiny_test.json", "dataset.json"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Neither pictures nor fsync: they would take most of the time."""
    from eval import inference

    monkeypatch.setattr(inference, "timeline", lambda *what: None)
    monkeypatch.setattr(inference, "figure_to_array", lambda figure: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(files, "_sync", lambda path: None)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A dataset without a fault, and its results."""
    place = tmp_path_factory.mktemp("sound")
    root = tiny.write(place / "tiny", videos=6)
    assert train(root, place).status == 0
    return root, results(place), place


def train(root, place, *more, epochs=1):
    options = {
        "dataset_name": "Tiny", "dataset_root": root, "exp_dir": place / "run", "cache_dir": place / "cache",
        "descriptors_root": place / "descriptors", "device": "cpu", "batch_size": 3, "max_epoch": epochs, "lr": 1e-3,
    }  # fmt: skip
    return outcome(main.main, [x for k, v in options.items() for x in (f"--{k}", v)] + list(more))


def results(place):
    """Of the last evaluation; every number is finite and a fraction."""
    found = json.loads((place / "run" / "results.json").read_text())["last"]
    numbers = [*found["mAP"], *found["average"].values(), *sum(found["AP"].values(), []), found["classification_mAP"]]
    assert all(0 <= x <= 1 for x in numbers)
    detections = json.loads((place / "run" / "detections.json").read_text())["results"]
    entries = [e for entries in detections.values() for e in entries]
    assert entries and all(math.isfinite(e["score"]) and e["segment"][0] <= e["segment"][1] for e in entries)
    return {k: v for k, v in found.items() if k != "epoch"}


def case(name, change, *words, log=(), same=False, more=()):
    """One row of a table: what is changed, and the words of its error; none: it trains (``same``: as if sound)."""
    return pytest.param(change, words, log, same, more, id=name)


ROW = "change, words, log, same, more"


def ends_well(sound, tmp_path, change, words, log, same, more):
    root = Path(shutil.copytree(sound[0], tmp_path / "tiny"))
    change(root)
    found = train(root, tmp_path, *more)
    if words:
        refused(found, *words)
        assert not (tmp_path / "run" / "results.json").exists()
        return
    assert found.status == 0, found.log
    assert all(word in found.log for word in log), found.log
    after = results(tmp_path)
    assert not same or after == sound[1]


# ---- ways to change a file


def remove(path):
    return lambda root: (root / path).unlink()


def write(path, data):
    return lambda root: (root / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def folder(path):
    def change(root):
        (root / path).unlink()
        (root / path).mkdir()

    return change


def cut(path, number):
    """Cut a file short at a seeded place."""

    def change(root):
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: int(stream(number, path).integers(1, len(data)))])

    return change


def array(path, how):
    """Replace the array of a .npy file by what ``how`` makes of it."""

    def change(root):
        np.save(root / path, how(np.load(root / path, allow_pickle=True)), allow_pickle=True)

    return change


def entry(path, index, value):
    """Replace one entry of an object array."""

    def change(values):
        values = list(values)
        values[index] = value
        return tiny.objects(values)

    return array(path, change)


def document(path, how):
    """Change a JSON file through a function that works on its value in place, or returns another."""

    def change(root):
        value = json.loads((root / path).read_text())
        made = how(value)
        (root / path).write_text(json.dumps(value if made is None else made))

    return change


def all_of(*changes):
    return lambda root: [change(root) for change in changes] and None


def each(paths, change, name, *words, **how):
    return [case(f"{Path(path).name} {name}", change(path), Path(path).name, *words, **how) for path in paths]


NPY = [f"{ANNOTATIONS}/{name}.npy" for name in ("classlist", "videoname", "subset", "labels_all", "labels", "segments")]
DURATION = f"{ANNOTATIONS}/duration.npy"
FEATURE = f"{FEATURES}/video_01.npy"
EVERY_NPY = [*NPY, DURATION, FEATURE]
EVERY_JSON = [TRAIN, TEST, PROFILE]

DAMAGED = [
    *each([*NPY, TRAIN, TEST], remove, "missing", "no such file"),
    *each([*EVERY_NPY, *EVERY_JSON], lambda path: write(path, b""), "empty"),
    *each([*EVERY_NPY, *EVERY_JSON], lambda path: write(path, b"\0" * 1000), "zeros"),
    *each([*EVERY_NPY, *EVERY_JSON], lambda path: write(path, "<html>404</html>"), "another kind of file"),
    *each([*NPY, DURATION, *EVERY_JSON], folder, "a folder"),
    *[c for n in range(3) for c in each([*EVERY_NPY, *EVERY_JSON], lambda path, n=n: cut(path, n), f"cut {n}")],
    *each([*NPY, DURATION], lambda path: array(path, lambda a: np.float64(3)), "of rank 0"),
    *each([*NPY, DURATION], lambda path: array(path, lambda a: np.zeros((2, 3, 4))), "of rank 3"),
    case("videoname.npy one short", array(NPY[1], lambda a: a[:-1]), ANNOTATIONS, "5 videos"),
    *each([*NPY[2:], DURATION], lambda path: array(path, lambda a: a[:-1]), "one short", "5", "6 videos"),
    *each(
        EVERY_NPY, lambda path: array(path, lambda a: tiny.objects([{"a": [tiny.objects([1, {}])]}] * 6)), "of dicts"
    ),
    *each(EVERY_NPY, lambda path: array(path, lambda a: np.full(6, "2020-01-01", "datetime64[D]")), "of dates"),
    *each(EVERY_JSON, lambda path: write(path, "[" * 100_000), "nested deeply"),
    *each(EVERY_JSON, lambda path: write(path, '{"a": NaN}'), "with NaN", "NaN"),
    *each(EVERY_JSON, lambda path: write(path, '{"a": 1, "a": 2}'), "with a key twice", "twice"),
    *each(EVERY_JSON, lambda path: write(path, '{"a": 1e999}'), "with infinity", "1e999"),
    *each(EVERY_JSON, lambda path: write(path, b'{"caf\xe9": 1}'), "in Latin-1", "UTF-8"),
    *each(EVERY_JSON, lambda path: write(path, '"text"'), "of one string"),
]


@pytest.mark.parametrize(ROW, DAMAGED)
def test_a_damaged_file_is_named(sound, tmp_path, change, words, log, same, more):
    ends_well(sound, tmp_path, change, words, log, same, more)


CLASSES, VIDEOS, SUBSET, WEAK, LABELS, SEGMENTS = NPY
LONG = "a" * 230

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
    case("an unknown class", array(CLASSES, lambda a: np.asarray(["jump", "run"])), "unknown class 'throw'", "video_01"),
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
    case("segments of no length", entry(SEGMENTS, 5, [[1, 1], [2, 2]])),
]  # fmt: skip


@pytest.mark.parametrize(ROW, ANNOTATION)
def test_annotations_that_say_odd_things(sound, tmp_path, change, words, log, same, more):
    ends_well(sound, tmp_path, change, words, log, same, more)


def renamed(name):
    """The first test video under another name, in every file that names it."""

    def change(root):
        videos = np.load(root / VIDEOS).tolist()
        old, videos[4] = videos[4], name
        np.save(root / VIDEOS, np.asarray(videos))
        document(TEST, lambda d: d["results"].update({name: d["results"].pop(old)}))(root)
        try:
            assert "/" not in name
            (root / FEATURES / f"{old}.npy").rename(root / FEATURES / f"{name}.npy")
        except (AssertionError, OSError, ValueError):
            (root / FEATURES / f"{old}.npy").unlink()

    return change


def joint(root):
    """Features as one object array instead of a folder."""
    found = [np.load(root / FEATURES / f"{v}.npy") for v in np.load(root / VIDEOS).tolist()]
    shutil.rmtree(root / FEATURES)
    np.save(root / f"{FEATURES}.npy", tiny.objects(found))


NAMES = [
    *[
        case(f"in a folder: {name!a:.20}", renamed(name))
        for name in ("vidéo 漢字 🎬", LONG, "-rf", "a b", "x" * 200, "%s{}")
    ],
    *[
        case(f"no file can have it: {name!a:.20}", renamed(name), log=["1 of 2 test videos have features"])
        for name in ("../../escaped", "/etc/escaped", "a/b", "..", "n" * 5000, "a\0b")
    ],
    *[
        case(f"in a joint array: {name!a:.20}", lambda root, n=name: (joint(root), renamed_joint(n)(root)))
        for name in ("../../escaped", "/etc/escaped", "n" * 5000, "vidéo 漢字 🎬", "line\nbreak\x1b[2J", "", "..")
    ],
]


def renamed_joint(name):
    def change(root):
        videos = np.load(root / VIDEOS).tolist()
        old, videos[4] = videos[4], name
        np.save(root / VIDEOS, tiny.objects(videos))
        document(TEST, lambda d: d["results"].update({name: d["results"].pop(old)}))(root)

    return change


@pytest.mark.parametrize(ROW, NAMES)
def test_names_of_videos_stay_names(sound, tmp_path, change, words, log, same, more):
    """No name leads out of its folder, breaks a line, or stops a run."""
    inside = tmp_path / "one" / "two"
    ends_well(sound, inside, change, words, log, same, more)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"] and not list(tmp_path.rglob("*escaped*"))
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["two"]


def feature(how):
    return array(FEATURE, how)


def npz(*names):
    def change(root):
        values = np.load(root / FEATURE)
        (root / FEATURE).unlink()
        np.savez_compressed(root / FEATURES / "video_01.npz", **{name: values for name in names})

    return change


def in_joint(index, value):
    return lambda root: (joint(root), entry(f"{FEATURES}.npy", index, value)(root))


def transposed(root):
    for path in (root / FEATURES).iterdir():
        np.save(path, np.load(path).T.copy())


FEATURE_CASES = [
    case("rank 0", feature(lambda a: np.float64(3)), FEATURES, "video_01", "not a [T, 2D] array"),
    case("rank 3", feature(lambda a: np.zeros((2, 3, 4))), FEATURES, "video_01", "(2, 3, 4)"),
    case("NaN", feature(lambda a: a * np.where(np.arange(8) == 3, np.nan, 1)), "video_01", "NaN"),
    case("Inf", feature(lambda a: a + np.where(np.arange(8) == 3, np.inf, 0)), "video_01", "Inf"),
    case("too large for float32", feature(lambda a: a.astype(float) * 1e300), "video_01", "Inf"),
    case("float64", feature(lambda a: a.astype(np.float64)), same=True),
    case("big-endian", feature(lambda a: a.astype(">f4")), same=True),
    case("in Fortran's order", feature(np.asfortranarray), same=True),
    case("float16", feature(lambda a: a.astype(np.float16))),
    case("whole numbers", feature(lambda a: a.astype(np.uint8))),
    case("complex", feature(lambda a: a + 1j), "video_01", "not a [T, 2D] array"),
    case("true or false", feature(lambda a: a > 1), "video_01", "not a [T, 2D] array"),
    case("text", feature(lambda a: a.astype("U8")), "video_01", "not a [T, 2D] array"),
    case("no snippet", feature(lambda a: a[:0]), "video_01", "T = 0"),
    case("no width", feature(lambda a: a[:, :0]), "video_01", "width 0"),
    case("another width", feature(lambda a: a[:, :6]), "video_01", "width 6, not 8"),
    case("an odd width", lambda root: [array(p, lambda a: a[:, :7])(root) for p in list((root / FEATURES).iterdir())],
         "odd width 7", FEATURES),
    case("one snippet", all_of(feature(lambda a: a[:1]), array(DURATION, lambda a: np.where(np.arange(6) == 1, 0.64, a)),
         document(TRAIN, lambda d: d["results"].update(video_01=[{"segment": [0, 0.5]}])))),
    case("transposed", transposed, same=True),
    case("in .npz", npz("x"), same=True),
    case("two arrays in .npz", npz("x", "y"), "video_01.npz", "2 arrays"),
    case("no array in .npz", npz(), "video_01.npz", "0 arrays"),
    case("a folder for a file", folder(FEATURE), "video_01.npy", "folder"),
    case("one file missing", remove(FEATURE), log=["3 of 4 train videos have features; missing: video_01"]),
    case("all files missing", lambda root: [p.unlink() for p in list((root / FEATURES).iterdir())], FEATURES),
    case("no folder", lambda root: shutil.rmtree(root / FEATURES), FEATURES, "no features"),
    case("files of others", lambda root: np.save(root / FEATURES / "another.npy", np.zeros(3)), same=True),
    case("joint", joint, same=True),
    case("joint, of None", in_joint(1, None), FEATURES, "video_01", "NoneType"),
    case("joint, of lists", in_joint(1, [[1.0] * 8] * 20), FEATURES, "video_01", "list"),
    case("joint, of objects", in_joint(1, tiny.objects([1, 2])), FEATURES, "video_01"),
    case("joint, of NaN", in_joint(1, np.full((20, 8), np.nan)), FEATURES, "video_01", "NaN"),
    case("joint, one short", lambda root: (joint(root), array(f"{FEATURES}.npy", lambda a: a[:-1])(root)), "5 videos"),
    case("joint, cut", lambda root: (joint(root), cut(f"{FEATURES}.npy", 3)(root)), f"{FEATURES}.npy"),
    case("--num_class", lambda root: None, "2 classes, --num_class 3", more=["--num_class", 3]),
    case("--feature_size", lambda root: None, "16", FEATURES, more=["--feature_size", 16]),
    case("durations of another frame rate", array(DURATION, lambda a: a * 3), log=["4 of 4 train videos have features of another length than their duration", "2 of 2 test"]),
]  # fmt: skip


@pytest.mark.parametrize(ROW, FEATURE_CASES)
def test_features_of_every_kind(sound, tmp_path, change, words, log, same, more):
    ends_well(sound, tmp_path, change, words, log, same, more)


def proposal(value, video="video_00", path=TRAIN):
    return document(path, lambda d: d["results"][video].__setitem__(2, value))


def segment(*times):
    return proposal({"segment": list(times)})


WHERE = (TRAIN, "video_00", "index 2")
PROPOSALS = [
    case("in reverse", segment(2, 1), *WHERE),
    case("of no length", segment(1, 1), *WHERE),
    case("negative", segment(-1, 1), *WHERE),
    case("beyond the video", segment(1, 1000), *WHERE),
    case("text", segment("1", "2"), *WHERE),
    case("true or false", segment(False, True), *WHERE),
    case("null", segment(None, 2), *WHERE),
    case("one time", segment(1), *WHERE),
    case("three times", segment(1, 2, 3), *WHERE),
    case("too long a number", segment(1, 10**400), TRAIN),
    case("no segment", proposal({"label": "x"}), *WHERE),
    case("a list", proposal([1, 2]), *WHERE),
    case("null for all", proposal(None), *WHERE),
    case("a dict of proposals", document(TRAIN, lambda d: d["results"].update(video_00={"0": 1})), TRAIN, "video_00"),
    case("text for proposals", document(TRAIN, lambda d: d["results"].update(video_00="abc")), TRAIN, "video_00"),
    case("whole seconds", segment(1, 2)),
    case("an empty list", document(TRAIN, lambda d: d["results"].update(video_00=[])), log=["1 of 4", "video_00"]),
    case("a video left out", document(TEST, lambda d: d["results"].pop("video_05") and None), log=["1 of 2", "video_05"]),
    case("an unknown video", document(TRAIN, lambda d: d["results"].update(other=[{"segment": "?"}])),
         log=["1 videos with proposals are not in the annotations", "other"], same=True),
    case("none at all", document(TRAIN, lambda d: {"results": {}}), TRAIN, "none of the 4 train videos"),
    case("none for any test video", document(TEST, lambda d: {"results": {"video_04": []}}), TEST, "none of the 2"),
    case("no results", document(TRAIN, lambda d: {"result": {}}), TRAIN, "'results'"),
    case("results in a list", document(TRAIN, lambda d: {"results": []}), TRAIN, "'results'"),
    case("labels and scores of any kind", document(TRAIN, lambda d: [e.update(label=None, score="?") for v in
         d["results"].values() for e in v] and None), same=True),
    case("fixed", all_of(segment(2, 1), document(TRAIN, lambda d: d["results"]["video_01"][0].update(segment=[1, 99]))),
         log=["1 proposals were dropped", "1 proposals were clipped"], more=["--fix_proposals"]),
    case("too short for a snippet", segment(1, 1.000001)),
    case("one in all", all_of(*(document(p, lambda d: {"results": {v: d["results"][v][:1] for v in list(d["results"])[:1]}})
         for p in (TRAIN, TEST))), log=["3 of 4", "1 of 2"]),
    case("the same one again and again", document(TRAIN, lambda d: {"results": {v: e[:1] * 50 for v, e in
         d["results"].items()}})),
]  # fmt: skip


@pytest.mark.parametrize(ROW, PROPOSALS)
def test_proposals_of_every_kind(sound, tmp_path, change, words, log, same, more):
    ends_well(sound, tmp_path, change, words, log, same, more)


def setting(**values):
    return document(PROFILE, lambda d: d.update(values))


PROFILES = [
    *[case(f"{k} {v!a:.30}", setting(**{k: v}), PROFILE, k) for k, values in {
        "feature_fps": (0, -1, "25", None, True, [25], 1e300), "snippet_stride": (0, "16", None),
        "tiou_thresholds": ([], [0], [2], ["a"], 0.5, [[0.5]], None, {}, [0.5, 0.3], [0.5, 0.5], [True]),
        "train_subset": (1, None, ["validation"]), "test_subset": (None,), "excluded_videos": ("video_04", [1], {}, None),
        "round_ground_truth": (1, "no", None), "annotations": (1, ["x"]), "features": (1, ["a", "b", "c"], [1]),
        "proposals_root": (1, ["."]), "no_such_field": (1,)}.items() for v in values],
    case("annotations elsewhere", setting(annotations="nowhere"), "nowhere"),
    case("features elsewhere", setting(features="nowhere"), "nowhere"),
    case("proposals elsewhere", setting(proposals_root="nowhere"), "nowhere"),
    case("a name with NUL", setting(annotations="a\0b"), r"a\x00b"),
    case("one threshold", setting(tiou_thresholds=[0.5])),
    case("all fields", setting(feature_fps=25, snippet_stride=16.0, train_subset="validation", test_subset="test",
         excluded_videos=[], round_ground_truth=True, annotations=ANNOTATIONS, features=[FEATURES]), same=True),
    case("a list", document(PROFILE, lambda d: []), PROFILE),
]  # fmt: skip


@pytest.mark.parametrize(ROW, PROFILES)
def test_profiles_of_every_kind(sound, tmp_path, change, words, log, same, more):
    ends_well(sound, tmp_path, change, words, log, same, more)


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
