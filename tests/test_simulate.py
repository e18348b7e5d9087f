"""Simulated data: the layout of real data, the same bytes for the same seed, hard but not hopeless."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from tests.outcome import outcome, refused
from utils.datasets.annotations import read_annotations, write_annotations
from utils.datasets.profile import PROFILES, load_profile, proposals_file
from utils.datasets.simulate import CLASSES, make_demo, simulate
from utils.datasets.world import generator, make_events, make_features, make_proposals, make_world
from utils.errors import InputError
from utils.files import load_array, load_json
from utils.tools import convert
from utils.tools import demo as demo_command

VIDEOS = (24, 12)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data" / "Demo"
    make_demo(root, seed=0, videos=VIDEOS)
    return root


def read(root: Path, name: str = "Demo"):
    read = read_annotations(root / f"{name}-Annotations")
    assert not read.problems
    return read.annotations, read.instances


def proposals_of(folder: Path, name: str = "Demo") -> dict:
    splits = [load_json(folder / f"Proposals_{name}_{split}.json")["results"] for split in ("train", "test")]
    assert not splits[0].keys() & splits[1].keys()
    return {v: np.array([p["segment"] for p in entries]) for split in splits for v, entries in split.items()}


def contents(folder: Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- the dataset Demo


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_demo(tmp_path / folder, seed=seed, videos=(3, 2), width=8)
    first, again, other = (contents(tmp_path / folder) for folder in "abc")
    assert first == again and first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.startswith("Demo-I3D"))


def test_the_demo_is_the_one_that_published_numbers_are_of(tmp_path):
    """Proposals of seed 0, in milliseconds: they follow from annotations and events, and depend on no processor."""
    make_demo(tmp_path / "Demo", width=1)
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update((tmp_path / "Demo" / f"Proposals_Demo_{split}.json").read_bytes())
    assert digest.hexdigest()[:16] == "2f6fa6f571ceee71"


def test_the_layout_is_that_of_a_real_dataset_and_says_that_it_is_simulated(demo):
    annotations, instances = read(demo)
    assert annotations.classes == CLASSES
    assert [annotations.subset.count(s) for s in ("validation", "test")] == list(VIDEOS)
    assert len(read_annotations(demo / "Demo-Annotations").ambiguous_s) == 2
    for i, video in enumerate(annotations.videos):
        features = load_array(demo / "Demo-I3D-JOINTFeatures" / f"{video}.npy", mmap=True)
        assert features.dtype == np.float16 and features.shape[1] == 128
        assert len(features) == int(annotations.duration_s[i] * 25 / 16) and 60 <= len(features) <= 240
        assert np.isfinite(features).all() and (features >= 0).all() and (features > 0).mean() > 0.3
        segment_s, label, _ = instances.of(video)
        assert set(label) == set(annotations.labels[i])
        assert (segment_s[:, 0] >= 0).all() and (segment_s[:, 1] <= annotations.duration_s[i]).all()
        assert (segment_s[:, 1] > segment_s[:, 0]).all()
    assert 1 < np.mean([len(labels) for labels in annotations.labels]) < 1.5
    assert "SIMULATED" in (demo / "SIMULATED.txt").read_text(encoding="utf-8")
    assert load_json(demo / "Proposals_Demo_test.json")["version"] == "simulated"


def test_a_finished_demo_is_never_overwritten_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    make_demo(tmp_path / "Demo", videos=(1, 1), width=4)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="exists already"):
        make_demo(tmp_path / "Demo", seed=1, videos=(1, 1), width=4)

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.datasets.world.make_features", fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "Other", videos=(1, 1), width=4)
    assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["Demo"]


# ---- features for annotations that exist


def annotated(folder: Path, order: slice = slice(None)) -> Path:
    """W-TALC annotations of a small Demo in ``folder``, its videos in another order."""
    make_demo(folder / "made", videos=(4, 3), width=2)
    source, target = folder / "made" / "Demo-Annotations", folder / "Demo-Annotations"
    target.mkdir()
    for path in source.glob("*.npy"):
        array = load_array(path, objects=True)
        np.save(target / path.name, array if path.stem == "classlist" else array[order], allow_pickle=True)
    return target


def test_features_follow_duration_width_and_type_and_depend_on_no_other_video(tmp_path):
    (tmp_path / "forth").mkdir()
    (tmp_path / "back").mkdir()
    source = annotated(tmp_path / "forth")
    assert simulate(source, tmp_path / "a", width=4, dtype="float32")[0] == "Demo"
    assert not list((tmp_path / "a").glob("*.json"))
    backward = annotated(tmp_path / "back", slice(None, None, -1))
    simulate(backward, tmp_path / "b", width=4, dtype="float32")
    simulate(source, tmp_path / "c", width=4, dtype="float32", proposals=9)
    forth, back, again = (contents(tmp_path / out / "Demo-I3D-JOINTFeatures") for out in "abc")
    assert forth == back == again and len(forth) == 8
    (annotations, instances), (_, timed) = read(tmp_path / "c"), read(tmp_path / "a")
    assert annotations.subset == ("validation",) * 4 + ("test",) * 3
    for video, duration_s in zip(annotations.videos, annotations.duration_s):
        features = load_array(tmp_path / "c" / "Demo-I3D-JOINTFeatures" / f"{video}.npy")
        assert features.shape == (int(duration_s * 25 / 16), 8) and features.dtype == np.float32
        np.testing.assert_array_equal(instances.of(video)[0], timed.of(video)[0])
    proposals = proposals_of(tmp_path / "c")
    assert list(proposals) == list(annotations.videos) and all(6 <= len(b) <= 12 for b in proposals.values())


def test_one_snippet_no_instance_and_a_second_long_video_are_simulated():
    world = make_world(0, 3, 4)
    for length, segments in ((1, np.zeros((0, 2))), (1, np.array([[0.0, 0.4]])), (7, np.array([[-3.0, 99.0]]))):
        label = np.zeros(len(segments), dtype=np.int64)
        events = make_events(generator(0, "v", "events"), length, segments, label, 3)
        features = make_features(generator(0, "v", "features"), length, events, world)
        assert features.shape == (length, 8) and features.dtype == np.float32 and np.isfinite(features).all()
        for count in (1, 2, 50):
            duration_s = length * 0.64
            boxes = make_proposals(generator(count), duration_s, segments * 0.64, segments[:0], count, 0.64)
            assert len(boxes) == count
            assert (boxes >= 0).all() and (boxes <= duration_s).all() and (boxes[:, 1] > boxes[:, 0]).all()


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"duration_s": np.array([np.nan, 9.0])}, "1 videos without a duration"),
        ({"duration_s": np.array([9.0, 0.0])}, "1 videos without a duration"),
        ({"videos": ("../../x", "y")}, "no file name"),
        ({"subset": ("validation", "validation")}, "no video in subset 'test'"),
    ],
)
def test_annotations_that_cannot_be_simulated_are_refused_and_nothing_is_left(tmp_path, spoil, message):
    make_demo(tmp_path / "made", videos=(1, 1), width=2)
    annotations, instances = read(tmp_path / "made")
    source = tmp_path / "in" / "Demo-Annotations"
    write_annotations(source, dataclasses.replace(annotations, **spoil), instances, {})
    with pytest.raises(InputError, match=message):
        simulate(source, tmp_path / "out", width=2)
    assert not list((tmp_path / "out").glob("*"))


def test_one_file_of_annotations_is_named_after_the_folder_and_takes_its_profile(tmp_path, demo):
    annotations, instances = read(demo)
    subset = tuple({"validation": "training", "test": "validation"}[name] for name in annotations.subset)
    source = tmp_path / "in" / "some"
    write_annotations(source, dataclasses.replace(annotations, subset=subset), instances, {})
    made, profile = simulate(source, tmp_path / "ActivityNet1.2", width=2)
    assert made == "ActivityNet1.2" and profile == PROFILES[made] == load_profile(made, tmp_path / made)
    assert len(list((tmp_path / made / f"{made}-I3D-JOINTFeatures").glob("*.npy"))) == sum(VIDEOS)
    with pytest.raises(InputError, match="no built-in profile and no dataset.json"):
        simulate(source, tmp_path / "mine", width=2)
    stated = {"train_subset": "training", "test_subset": "validation", "snippet_stride": 8, "proposals_root": "."}
    (tmp_path / "mine" / "dataset.json").write_text(json.dumps(stated))
    _, profile = simulate(source, tmp_path / "mine", width=2, proposals=5)
    assert profile.snippet_stride == 8 and proposals_file("mine", profile, "train").is_file()


# ---- the command: python -m utils.tools.demo


def test_the_command_makes_the_demo_and_says_that_it_is_simulated(tmp_path):
    done = outcome(demo_command.main, ["--out", tmp_path / "Demo", "--width", 2])
    assert done.status == 0 and "SIMULATED" in done.out, done.log
    assert len(read_annotations(tmp_path / "Demo" / "Demo-Annotations")[0].videos) == 150
    assert not refused(outcome(demo_command.main, ["--out", tmp_path / "Demo"]), "exists already").count("Traceback")


@pytest.mark.parametrize("wrong", [("--width", "0"), ("--proposals", "5"), ("--seed", "-1")])
def test_what_the_command_cannot_make_is_refused(tmp_path, wrong):
    refused(outcome(demo_command.main, ["--out", tmp_path / "other", *wrong]), wrong[0])
    assert not list(tmp_path.iterdir())


def test_the_printed_command_trains(tmp_path, capsys):
    make_demo(tmp_path / "made", videos=(24, 6), width=2)
    path = tmp_path / "some.v1-2.json"
    source = str(tmp_path / "made" / "Demo-Annotations")
    convert.main(["annotations", source, "--to", "activitynet", "--out", str(path)])
    path.write_text(path.read_text().replace("validation", "training").replace('"test"', '"validation"'))
    how = ("--annotations", path, "--out", tmp_path / "my data" / "ActivityNet1.2", "--width", 4)
    made = outcome(demo_command.main, [*how, "--proposals", 9])
    assert made.status == 0, made.log
    line = shlex.split(made.out.splitlines()[-1])
    own = [f"--{name}={tmp_path / name}" for name in ("exp_dir", "cache_dir", "descriptors_root")]
    assert line[:2] == ["python", "main.py"]
    assert not main.main(line[2:] + own + ["--max_epoch", "1", "--device", "cpu"])
    assert "SIMULATED" in capsys.readouterr().out


def test_where_proposals_are_needed_first_it_says_which(tmp_path):
    make_demo(tmp_path / "made", videos=(4, 3), width=2)
    source = shutil.copytree(tmp_path / "made" / "Demo-Annotations", tmp_path / "Own-Annotations")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("{}")
    made = outcome(demo_command.main, ["--annotations", source, "--out", tmp_path / "out", "--width", 2])
    assert made.status == 0 and "Proposals_Own_{train,test}.json in proposals4Own" in made.out, made.log
