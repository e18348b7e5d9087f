"""``python -m utils.tools.convert``: round trips give equal data, nothing is overwritten or leaves its folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.outcome import outcome, refused
from tests.tiny import ANNOTATIONS, FEATURES
from utils.datasets.annotations import Annotations, read_annotations, write_annotations
from utils.errors import InputError
from utils.formats import FORMS
from utils.segments import Segments
from utils.tools.convert import main


def run(kind, source, target, *more):
    sources = source if isinstance(source, list) else [source]
    form = ["--to", "activitynet" if target.suffix == ".json" else "npy"] if kind == "annotations" else []
    main([kind, *map(str, sources), *form, "--out", str(target), *map(str, more)])


def features(root, source, target, *more):
    run("features", source, target, "--annotations", root / ANNOTATIONS, *more)


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def same(a, b):
    """Whether two annotation files hold the same: Annotations and instances, bit for bit."""
    for x, y in zip(read_annotations(a)[:2], read_annotations(b)[:2]):
        for field, value in vars(x).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, vars(y)[field], strict=True)
            else:
                assert value == vars(y)[field], field


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_features_make_a_round_trip_with_every_bit_and_type(root, dtype):
    folder = root / FEATURES
    for i, path in enumerate(sorted(folder.iterdir())):
        array = (100 * np.load(path)).astype(dtype)
        if dtype != "int32":
            array[0, 0] = np.nan  # also what is wrong stays as it is
        np.save(path, array[: i + 7])
    features(root, folder, root / "joint.npy")
    features(root, root / "joint.npy", root / "again")
    assert sorted(p.name for p in (root / "again").iterdir()) == sorted(p.name for p in folder.iterdir())
    for path in folder.iterdir():
        np.testing.assert_array_equal(np.load(root / "again" / path.name), np.load(path), strict=True)


def test_rows_follow_the_annotations_order_and_equal_lengths_stay_rows(root):
    names = np.load(root / ANNOTATIONS / "videoname.npy")[::-1]
    np.save(root / ANNOTATIONS / "videoname.npy", names)
    folder = root / FEATURES
    for i, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.full((5, 8), i, dtype=np.float32))
    features(root, folder, root / "joint.npy", "--feature_size", 8)
    joint = np.load(root / "joint.npy", allow_pickle=True)
    assert joint.dtype == object and [row.tolist() for row in joint] == [[[i] * 8] * 5 for i in range(8)]


def test_turned_files_and_two_folders_become_the_same_joint_array(root):
    arrays = {p.stem: np.load(p) for p in sorted((root / FEATURES).iterdir())}
    for name, how in (("turned", lambda a: a.T), ("rgb", lambda a: a[:, :4]), ("flow", lambda a: a[:, 4:])):
        (root / name).mkdir()
        for video, array in arrays.items():
            np.savez(root / name / f"v_{video}.npz", how(array))
    for number, sources in enumerate(([root / "turned"], [root / "rgb", root / "flow"])):
        target = root / f"joint{number}.npy"
        features(root, sources, target, "--feature_size", 8)
        for row, array in zip(np.load(target, allow_pickle=True), arrays.values()):
            np.testing.assert_array_equal(row, array, strict=True)


def test_real_data_make_a_round_trip(shared, tmp_path):
    source, annotations = shared / "data" / "GTEA" / "GTEA-I3D-JOINTFeatures.npy", shared / "data/GTEA/GTEA-Annotations"
    run("features", source, tmp_path / "folder", "--annotations", annotations)
    run("features", tmp_path / "folder", tmp_path / "joint.npy", "--annotations", annotations)
    for a, b in zip(*(np.load(path, allow_pickle=True) for path in (source, tmp_path / "joint.npy"))):
        np.testing.assert_array_equal(a, b, strict=True)
    source = shared / "data" / "Thumos14reduced" / "Thumos14reduced-Annotations"
    run("annotations", source, tmp_path / "a.json")
    run("annotations", tmp_path / "a.json", tmp_path / "b")
    same(source, tmp_path / "b")


def test_annotations_that_json_has_no_place_for_survive_every_round_trip(tmp_path):
    """Class order, an unused class, weak labels of their own, an unknown duration, times of many digits."""
    weak = ((1,), (), (2, 1), (0,), (1, 0))
    classes, videos = ("zoom", "añb", "c", "never"), ("a", "b b", "ü", "-d", "e.f")
    segment_s = np.asarray([[0.1, 0.30000000000000004], [2.0, 3.0], [1.0, 1.0], [4.0, 5.0], [1e-9, 7.25]])
    instances = Segments(classes, videos, np.asarray([0, 0, 1, 4, 4]), segment_s, np.asarray([1, 2, 0, 0, 1]))
    duration_s = np.asarray([10.0, np.nan, 3.3, 1 / 3, 8.0])
    annotations, first = Annotations(classes, videos, ("x", "x", "y", "z", "s"), duration_s, weak), tmp_path / "first"
    write_annotations(first, annotations, instances, {"ü": np.asarray([[1.0, 2.5]])})
    run("annotations", first, tmp_path / "a.json")
    run("annotations", tmp_path / "a.json", tmp_path / "second")
    run("annotations", first, tmp_path / "third")
    for other in ("a.json", "second", "third"):
        same(first, tmp_path / other)
    read = read_annotations(tmp_path / "a.json").annotations
    assert read.labels == annotations.labels and read.classes == annotations.classes
    (times,) = read_annotations(tmp_path / "third").ambiguous_s.values()
    assert times.tolist() == [[1.0, 2.5]]


def test_plain_annotations_become_plain_activitynet_json(tmp_path):
    entry = {"subset": "training", "duration": 9.5, "annotations": [{"segment": [1.0, 2.5], "label": "jump"}]}
    (tmp_path / "a.json").write_text(json.dumps({"database": {"v": entry}}))
    run("annotations", tmp_path / "a.json", tmp_path / "npy")
    run("annotations", tmp_path / "npy", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["database"] == {"v": entry}


@pytest.mark.parametrize(
    "rows", ["label,start,end,duration\nv,s,jump,1,2.5,9\nw,t,,,,", "label\nv,s,run\nv,s,jump\nw,t,"]
)
def test_a_csv_keeps_what_it_says_in_every_form(tmp_path, rows):
    (tmp_path / "a.csv").write_text(f"video,subset,{rows}\n")
    run("annotations", tmp_path / "a.csv", tmp_path / "npy")
    run("annotations", tmp_path / "npy", tmp_path / "b.json")
    same(tmp_path / "a.csv", tmp_path / "npy")
    same(tmp_path / "a.csv", tmp_path / "b.json")


def test_nothing_is_overwritten(root):
    folder, joint, full = root / FEATURES, root / "joint.npy", root / "full"
    features(root, folder, joint)
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    content = joint.read_bytes()
    for source, target in ((folder, joint), (joint, full), (joint, joint)):
        with pytest.raises(InputError, match="exists already"):
            features(root, source, target)
    for target in (joint, full, root / "dataset.json"):
        with pytest.raises(InputError, match="exists already"):
            run("annotations", root / ANNOTATIONS, target)
    assert joint.read_bytes() == content and [p.name for p in full.iterdir()] == ["mine.txt"]


def test_a_video_name_that_is_no_file_name_is_refused_before_anything_is_written(root):
    features(root, root / FEATURES, root / "joint.npy")
    names = np.load(root / ANNOTATIONS / "videoname.npy").tolist()
    np.save(root / ANNOTATIONS / "videoname.npy", np.asarray([*names[:-1], "../../out"]))
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(InputError, match="no file name"):
        features(root, root / "joint.npy", root / "deep" / "folder")
    assert sorted(root.parent.rglob("*")) == before


def test_a_conversion_that_fails_leaves_nothing(root, monkeypatch):
    folder = root / FEATURES
    features(root, folder, root / "good.npy")
    joint = np.load(root / "good.npy", allow_pickle=True)
    joint[5] = joint[5][:, :3]
    np.save(root / "joint.npy", joint, allow_pickle=True)
    copy = shutil.copytree(folder, root / "copy")
    (copy / "video_05.npy").write_bytes(b"damaged")
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError, match="width 3.*video_05"):
        features(root, root / "joint.npy", root / "out")
    with pytest.raises(InputError, match="video_05"):
        features(root, copy, root / "out.npy")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    for command, source, target in ((features, folder, "a.npy"), (features, root / "good.npy", "files")):
        with pytest.raises(OSError, match="No space"):
            command(root, source, root / target)
    with pytest.raises(OSError, match="No space"):
        run("annotations", root / ANNOTATIONS, root / "npy")
    assert sorted(root.rglob("*")) == before


def test_a_joint_array_needs_every_video_and_says_which_are_missing(root):
    for i in (2, 6):
        (root / FEATURES / f"video_{i:02d}.npy").unlink()
    with pytest.raises(InputError, match="2 of 8 annotated videos: video_02, video_06"):
        features(root, root / FEATURES, root / "joint.npy")


@pytest.mark.parametrize("target, sources, words", [("joint", 1, "end in .npy"), ("joint.npy", 3, "give one, or the")])
def test_arguments_that_make_no_sense_are_refused(root, target, sources, words):
    folder, annotations = root / FEATURES, root / ANNOTATIONS
    argv = ["features", *[folder] * sources, "--annotations", annotations, "--out", root / target]
    refused(outcome(main, argv), words)


# ---- forms of other programs


def test_detections_go_into_every_form_and_nothing_is_overwritten(tmp_path, capsys):
    entries = [{"segment": [1.5, 2.0], "label": "run", "score": 0.9}, {"segment": [3, 4], "label": "hop", "score": 0.1}]
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"version": "x", "results": {"v": entries, "w": []}}))
    for form in FORMS:
        main(["detections", str(path), "--to", form, "--fps", "25"])
    names = {f"detections-{form}{FORMS[form].suffix if FORMS[form].whole else ''}" for form in FORMS}
    assert {p.name for p in tmp_path.iterdir()} == names | {path.name}
    assert sorted(p.name for p in (tmp_path / "detections-vtt").iterdir()) == ["v.vtt", "w.vtt"]
    assert json.loads((tmp_path / "detections-activitynet.json").read_text())["external_data"] == {}
    assert "2 detections in 2 videos" in capsys.readouterr().out
    main(["detections", str(tmp_path / "detections-fiftyone.json"), "--to", "csv", "--min_score", "0.5"])
    lines = (tmp_path / "detections-fiftyone-csv.csv").read_text().splitlines()
    assert lines == ["video,label,start,end,score", "v,run,1.5,2.0,0.9"]
    for form in ("csv", "vtt"):
        refused(outcome(main, ["detections", path, "--to", form]), "exists already")
    refused(outcome(main, ["detections", path, "--to", "labelstudio", "--out", tmp_path / "x.json"]), "--fps")
    (tmp_path / "other.json").write_text("{}")
    refused(outcome(main, ["detections", tmp_path / "other.json", "--to", "csv"]), "not a file of detections")


@pytest.mark.parametrize("form", ["csv", "fiftyone", "via"])
def test_annotations_of_labelling_tools_make_a_round_trip(root, form):
    source, there = root / ANNOTATIONS, root / f"there{FORMS[form].suffix}"
    main(["annotations", str(source), "--to", form, "--out", str(there), "--suffix", ".mp4"])
    main(["annotations", str(there), "--subset", "training", "--to", "npy", "--out", str(root / "back")])
    before, after = read_annotations(source), read_annotations(root / "back")
    assert set(after.annotations.subset) == {"training"} and np.isnan(after.annotations.duration_s).all()
    assert after.annotations.classes == before.annotations.classes
    for video in before.annotations.videos:
        for x, y in zip(before.instances.of(video)[:2], after.instances.of(video)[:2]):
            np.testing.assert_array_equal(x, y)
    words = ["annotations", there, "--to", "activitynet", "--out", root / "x.json"]
    refused(outcome(main, words), "name no subset", "--subset")


def test_features_of_videos_that_a_labelling_tool_lists(root):
    main(["annotations", str(root / ANNOTATIONS), "--to", "fiftyone", "--out", str(root / "labels.json")])
    run("features", root / FEATURES, root / "joint.npy", "--annotations", root / "labels.json")
    assert len(np.load(root / "joint.npy", allow_pickle=True)) == 8
