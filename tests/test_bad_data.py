"""Features, proposals, profiles and damaged files of every kind, through the real training.

Each case ends in the right result or in one line that names the file, with exit status 2; never in a traceback.
"""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.changes import (
    ANNOTATIONS,
    DURATION,
    EVERY_JSON,
    EVERY_NPY,
    FEATURE,
    FEATURES,
    NPY,
    PROFILE,
    TEST,
    TRAIN,
    all_of,
    array,
    case,
    cut,
    document,
    each,
    ends_well,
    entry,
    folder,
    joint,
    remove,
    setting,
    write,
)

pytestmark = pytest.mark.usefixtures("hurried")


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
    *each(EVERY_JSON, lambda path: write(path, '{"a": NaN}'), "with NaN"),
    *each(EVERY_JSON, lambda path: write(path, '{"a": 1, "a": 2}'), "with a key twice", "twice"),
    *each(EVERY_JSON, lambda path: write(path, '{"a": 1e999}'), "with infinity"),
    *each(EVERY_JSON, lambda path: write(path, b'{"caf\xe9": 1}'), "in Latin-1", "UTF-8"),
    *each(EVERY_JSON, lambda path: write(path, '"text"'), "of one string"),
]


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(sound, tmp_path, case):
    ends_well(sound, tmp_path, case)


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
    case("one snippet", all_of(feature(lambda a: a[:1]),
         array(DURATION, lambda a: np.where(np.arange(6) == 1, 0.64, a)),
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
    case("durations of another frame rate", array(DURATION, lambda a: a * 3),
         log=["4 of 4 train videos have features of another length than their duration", "2 of 2 test"]),
]  # fmt: skip


@pytest.mark.parametrize("case", FEATURE_CASES)
def test_features_of_every_kind(sound, tmp_path, case):
    ends_well(sound, tmp_path, case)


def proposal(value, video="video_00", path=TRAIN):
    return document(path, lambda d: d["results"][video].__setitem__(2, value))


def segment(*times):
    return proposal({"segment": list(times)})


def first_of(found):
    """The first proposal of the first video."""
    return {video: entries[:1] for video, entries in list(found.items())[:1]}


WHERE = (TRAIN, "video_00", "index 2")
PROPOSALS = [
    case("in reverse", segment(2, 1), *WHERE),
    case("of no length", segment(1, 1), *WHERE),
    case("negative", segment(-1, 1), *WHERE),
    case("beyond the video", segment(1, 1000), *WHERE),
    case("text", segment("1", "2"), *WHERE),
    case("NaN", segment(math.nan, 2), *WHERE),
    case("Inf", segment(1, math.inf), TRAIN),
    case("NaN, fixed", segment(math.nan, 2), log=["1 proposals were dropped"], more=["--fix_proposals"]),
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
    case("a video left out",
         document(TEST, lambda d: d["results"].pop("video_05") and None), log=["1 of 2", "video_05"]),
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
    case("one in all", all_of(*(document(p, lambda d: {"results": first_of(d["results"])})
         for p in (TRAIN, TEST))), log=["3 of 4", "1 of 2"]),
    case("the same one again and again", document(TRAIN, lambda d: {"results": {v: e[:1] * 50 for v, e in
         d["results"].items()}})),
]  # fmt: skip


@pytest.mark.parametrize("case", PROPOSALS)
def test_proposals_of_every_kind(sound, tmp_path, case):
    ends_well(sound, tmp_path, case)


PROFILES = [
    *[case(f"{k} {v!a:.30}", setting(**{k: v}), PROFILE, k) for k, values in {
        "feature_fps": (0, -1, "25", None, True, [25], 1e300), "snippet_stride": (0, "16", None),
        "tiou_thresholds": ([], [0], [2], ["a"], 0.5, [[0.5]], None, {}, [0.5, 0.3], [0.5, 0.5], [True]),
        "train_subset": (1, None, ["validation"]), "test_subset": (None,),
        "excluded_videos": ("video_04", [1], {}, None),
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


@pytest.mark.parametrize("case", PROFILES)
def test_profiles_of_every_kind(sound, tmp_path, case):
    ends_well(sound, tmp_path, case)
