"""Profiles, annotations in every form, features in every layout, splits, and what training may read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dataset import epoch_order, load_source, load_split, packed_batch
from tests import tiny
from utils.annotations import read_instances, read_weak_labels
from utils.errors import InputError
from utils.features import Features
from utils.profile import load_ground_truth, load_profile


def split_of(root, split="train", **how):
    how.setdefault("cache_dir", None)
    return load_split(load_source("Tiny", str(root), **how), split, lambda line: None)


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def test_real_thumos_annotations(shared):
    folder = shared / "data" / "Thumos14reduced" / "Thumos14reduced-Annotations"
    weak = read_weak_labels(folder)
    instances = read_instances(folder, weak)
    assert (len(weak.videos), len(weak.classes)) == (412, 20)
    assert len(weak.of("validation")) == 200 and len(weak.of("test")) == 212
    subset = np.asarray(weak.subset)[instances.video]
    assert ((subset == "validation").sum(), (subset == "test").sum()) == (3007, 3358)
    assert weak.labels[weak.videos.index("video_test_0000270")] == ()
    strong = [set(instances.label[instances.video == i].tolist()) for i in range(412)]
    assert sum(set(w) != s for w, s in zip(weak.labels, strong)) == 28  # the weak label is kept as it is


def test_real_activitynet_in_both_forms(shared):
    npy = read_weak_labels(shared / "data" / "ActivityNet1.3" / "ActivityNet1.3-Annotations")
    assert (len(npy.videos), len(npy.classes), len(npy.of("training")), len(npy.of("validation"))) == (
        13912,
        200,
        9337,
        4575,
    )
    root = shared / "data" / "ActivityNet1.2"
    truth = load_ground_truth("ActivityNet1.2", root, load_profile("ActivityNet1.2", root), "validation")
    assert (len(truth.classes), len(truth.videos)) == (100, 2198)


def test_the_three_forms_of_annotation_agree(root, tmp_path):
    folder = root / "Tiny-Annotations"
    weak = read_weak_labels(folder)
    instances = read_instances(folder, weak)
    database, lines = {}, ["video,subset,label,start,end,duration"]
    for i, video in enumerate(weak.videos):
        mine = instances.video == i
        pairs = instances.segment_s[mine].tolist()
        notes = [{"segment": p, "label": weak.classes[c]} for p, c in zip(pairs, instances.label[mine])]
        duration = float(weak.duration_s[i])
        database[video] = {"subset": weak.subset[i], "duration": duration, "annotations": notes}
        lines += [
            f"{video},{weak.subset[i]},{n['label']},{n['segment'][0]},{n['segment'][1]},{duration}" for n in notes
        ]
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    for other in (tmp_path / "a.json", tmp_path / "a.csv"):
        again = read_weak_labels(other)
        assert (again.classes, again.videos, again.subset, again.labels) == (
            weak.classes,
            weak.videos,
            weak.subset,
            weak.labels,
        )
        np.testing.assert_allclose(again.duration_s, weak.duration_s)
        for a, b in zip(vars(read_instances(other, again)).values(), vars(instances).values()):
            np.testing.assert_allclose(a, b)


def test_a_csv_of_weak_labels_alone_is_enough_to_train(tmp_path):
    (tmp_path / "a.csv").write_text("video,subset,label\nv,train,jump\nw,train,\n")
    weak = read_weak_labels(tmp_path / "a.csv")
    assert weak.labels == ((0,), ()) and len(read_instances(tmp_path / "a.csv", weak).video) == 0


def test_rows_of_a_csv_that_repeat_a_weak_label_are_one_and_blanks_make_no_class(tmp_path):
    (tmp_path / "a.csv").write_text(
        " video, subset,label\nv,train,jump\nv ,train , jump\nv,train,\tsauté\u00a0\n", "utf-8"
    )
    weak = read_weak_labels(tmp_path / "a.csv")
    assert (weak.videos, weak.subset, weak.classes, weak.labels) == (("v",), ("train",), ("jump", "sauté"), ((0, 1),))


def test_real_activitynet_repeats_instances_and_keeps_them(shared):
    folder = shared / "data" / "ActivityNet1.3" / "ActivityNet1.3-Annotations"
    found = read_instances(folder, read_weak_labels(folder))
    rows = np.c_[found.video, found.label, found.segment_s]
    assert (len(rows), len(rows) - len(np.unique(rows, axis=0))) == (21434, 44)


WRONG = {
    "labels_all.npy": (lambda a: tiny.objects([["no such class"]] + list(a[1:])), "unknown class 'no such class'"),
    "videoname.npy": (lambda a: np.concatenate([a[:-1], a[:1]]), "stands twice"),
    "classlist.npy": (lambda a: np.asarray(["jump", "jump"]), "stands twice"),
    "subset.npy": (lambda a: a[:-1], "7 subset for 8 videos"),
    "duration.npy": (lambda a: a[:-1], "7 duration for 8 videos"),
    "segments.npy": (lambda a: tiny.objects([[[0.0]]] + list(a[1:])), "not pairs"),
    "labels.npy": (lambda a: tiny.objects([["jump"]] + list(a[1:])), "2 segments and 1 labels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_annotations_are_named(root, name):
    path = root / "Tiny-Annotations" / name
    change, words = WRONG[name]
    np.save(path, change(np.load(path, allow_pickle=True)))
    with pytest.raises(InputError, match=words):
        load_ground_truth("Tiny", root, load_profile("Tiny", root), "test")


@pytest.mark.parametrize(
    "profile",
    [
        {"no_such_field": 1},
        [],
        {"feature_fps": 0},
        {"feature_fps": "25"},
        {"tiou_thresholds": []},
        {"tiou_thresholds": [2]},
        {"train_subset": 3},
        {"excluded_videos": [1]},
        {"features": ["a", "b", "c"]},
        {"round_ground_truth": 1},
        {"annotations": 4},
    ],
)
def test_a_wrong_profile_is_refused(root, profile):
    (root / "dataset.json").write_text(json.dumps(profile))
    with pytest.raises(InputError, match="dataset.json"):
        load_profile("Tiny", root)


def test_a_dataset_without_profile_is_refused_whatever_its_name_contains(root):
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match="no built-in profile"):
        load_profile("Thumos14reduced-mine", root)


def layouts(root, kind):
    """Rewrite the folder features of a tiny dataset in another layout."""
    folder = root / "Tiny-I3D-JOINTFeatures"
    arrays = {p.stem: np.load(p) for p in sorted(folder.iterdir())}
    if kind == "joint":
        np.save(root / "Tiny-I3D-JOINTFeatures.npy", tiny.objects(list(arrays.values())), allow_pickle=True)
    parts = (
        {"rgb": slice(0, 4), "flow": slice(4, 8)} if kind == "two folders" else {"Tiny-I3D-JOINTFeatures": slice(None)}
    )
    for p in folder.iterdir():
        p.unlink()
    folder.rmdir()
    if kind == "joint":
        return
    for name, columns in parts.items():
        (root / name).mkdir()
        for video, array in arrays.items():
            array = array[:, columns]
            if kind == "npz":
                np.savez_compressed(root / name / f"{video}.npz", feature=array)
            else:
                prefix = "v_" if kind == "v_ prefix" else ""
                np.save(root / name / f"{prefix}{video}.npy", array.T if kind == "[2D, T]" else array)
    if kind == "two folders":
        (root / "dataset.json").write_text(json.dumps({"proposals_root": ".", "features": ["rgb", "flow"]}))


@pytest.mark.parametrize("kind", ["joint", "npz", "v_ prefix", "[2D, T]", "two folders"])
def test_every_layout_of_features_gives_the_same_rows(root, tmp_path, kind):
    expected = split_of(root)
    rows = expected.rows.gather([0, 3])
    layouts(root, kind)
    found = split_of(root)
    assert found.videos == expected.videos
    np.testing.assert_array_equal(found.rows.video_mean, expected.rows.video_mean)
    assert torch.equal(found.rows.gather([0, 3]), rows)


@pytest.mark.parametrize("kind", ["npz", "joint"])
def test_a_finished_cache_needs_no_features_even_where_lengths_are_unknown(root, tmp_path, kind, monkeypatch):
    layouts(root, kind)
    (root / "Tiny-Annotations" / "duration.npy").unlink()
    how = dict(cache_dir=tmp_path / "cache")
    first = load_split(load_source("Tiny", str(root), **how), "train", lambda line: None)
    monkeypatch.setattr(Features, "_raw", lambda self, *what, **how: pytest.fail("features were read"))
    again = load_split(load_source("Tiny", str(root), **how), "train", lambda line: None)
    assert torch.equal(first.rows.gather([0, 3]), again.rows.gather([0, 3]))
    path = root / "Proposals_Tiny_train.json"
    document = json.loads(path.read_text())
    monkeypatch.undo()
    end = (first.rows.num_snippets[0] + 1) * 0.64
    for late, good in ((0.0, True), (0.1, False)):
        document["results"][first.videos[0]].append({"segment": [0, end + late]})
        path.write_text(json.dumps(document))
        if good:
            load_split(load_source("Tiny", str(root), **how), "train", lambda line: None)
        else:
            index = len(document["results"][first.videos[0]]) - 1
            with pytest.raises(
                InputError, match=f"no segment of a video .*train.json, {first.videos[0]}, index {index}"
            ):
                load_split(load_source("Tiny", str(root), **how), "train", lambda line: None)


def test_square_features_cannot_be_told_apart(root):
    for path in (root / "Tiny-I3D-JOINTFeatures").iterdir():
        np.save(path, np.zeros((8, 8), dtype=np.float32))
    with pytest.raises(InputError, match="cannot be told apart"):
        split_of(root, feature_size=8)


def spoil(change):
    def apply(root):
        path = root / "Tiny-I3D-JOINTFeatures" / "video_00.npy"
        np.save(path, change(np.load(path)), allow_pickle=True)

    return apply


def set_first(value):
    def change(array):
        array[3, 2] = value
        return array

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (spoil(set_first(np.nan)), "NaN or Inf"),
        (spoil(set_first(np.inf)), "NaN or Inf"),
        (spoil(lambda a: a[:0]), "T = 0"),
        (spoil(lambda a: a[0]), "not a .T, 2D. array"),
        (spoil(lambda a: a.astype("U4")), "not a .T, 2D. array"),
        (spoil(lambda a: a.astype(object)), "video_00"),
        (lambda root: (root / "Tiny-I3D-JOINTFeatures" / "video_00.npy").write_bytes(b"\x93NUMPY"), "video_00"),
    ],
)
def test_bad_features_are_named_by_video(root, change, words):
    change(root)
    with pytest.raises(InputError, match=words) as error:
        split_of(root)
    assert "video_00" in str(error.value)


def test_videos_without_features_are_counted_and_named(root):
    (root / "Tiny-I3D-JOINTFeatures" / "video_02.npy").unlink()
    lines = []
    split = load_split(load_source("Tiny", str(root), cache_dir=None), "train", lines.append)
    assert "video_02" not in split.videos
    assert any("4 of 5 train videos have features; missing: video_02" in line for line in lines)


def test_videos_without_proposals_are_counted_and_no_box_is_invented(root):
    path = root / "Proposals_Tiny_test.json"
    document = json.loads(path.read_text())
    del document["results"]["video_06"]
    path.write_text(json.dumps(document))
    lines = []
    split = load_split(load_source("Tiny", str(root), cache_dir=None), "test", lines.append)
    assert [len(p) for p in split.proposals] == [9, 0, 9] and split.scored.tolist() == [0, 2]
    assert any("no detections from them" in line and "video_06" in line for line in lines)
    path.write_text(json.dumps({"results": {}}))
    with pytest.raises(InputError, match="proposals for none"):
        split_of(root, "test")


@pytest.mark.parametrize("flag, value", [("num_class", 3), ("feature_size", 16)])
def test_a_flag_that_disagrees_with_the_data_is_an_error(root, flag, value):
    with pytest.raises(InputError, match=f"leave out --{flag}"):
        split_of(root, **{flag: value})


def test_batches_cover_an_epoch_in_an_order_of_its_own_and_drop_the_partial_one():
    videos = np.arange(5, 28)
    first, second = (epoch_order(videos, 10, 0, epoch) for epoch in (1, 2))
    assert [len(b) for b in first] == [10, 10]
    assert len(set(np.concatenate(first))) == 20 and set(np.concatenate(first)) <= set(videos)
    assert not np.array_equal(first, second) and np.array_equal(first, epoch_order(videos, 10, 0, 1))
    assert [len(b) for b in epoch_order(videos[:3], 10, 0, 1)] == [3]


def test_a_packed_batch_holds_each_video_as_it_is_alone(root):
    split = split_of(root)
    device = torch.device("cpu")
    (rows, index, *_), batch = packed_batch(split, [2, 0], device)
    assert batch.counts == (9, 9) and batch.names == ("video_02", "video_00") and len(rows) == 16  # one twin a video
    for place, v in enumerate((2, 0)):
        (alone_rows, alone_index, *_), alone = packed_batch(split, [v], device)
        mine = batch.video == place
        assert torch.equal(rows[index[mine]], alone_rows[alone_index])
        assert torch.equal(batch.proposals[mine], alone.proposals)
        np.testing.assert_array_equal(batch.labels[place], split.labels[v])


def test_max_proposal_takes_a_random_subset_that_everything_downstream_shares(root):
    split, device = split_of(root), torch.device("cpu")
    (full_rows, full_index, *_), full = packed_batch(split, [1], device)
    seen = set()
    for epoch in range(6):
        (rows, index, *_), batch = packed_batch(split, [1], device, max_proposal=4, seed=3, epoch=epoch)
        _, again = packed_batch(split, [1], device, max_proposal=4, seed=3, epoch=epoch)
        assert batch.counts == (4,) and torch.equal(batch.proposals, again.proposals)
        for proposal, row in zip(batch.proposals, rows[index]):
            twin = (full.proposals == proposal).all(1).nonzero()[0, 0]
            assert torch.equal(row, full_rows[full_index[twin]])
        seen.add(tuple(batch.proposals[:, 0].tolist()))
    assert len(seen) > 1


def test_a_share_of_a_batch_has_its_own_inputs_and_sees_the_whole_batch(root):
    split, device = split_of(root), torch.device("cpu")
    whole, batch = packed_batch(split, [3, 0, 2], device)
    share, same = packed_batch(split, [3, 0, 2], device, mine=slice(1, 3))
    assert same.counts == batch.counts and torch.equal(same.proposals, batch.proposals)
    assert share.counts == whole.counts[1:] and share.row_counts == whole.row_counts[1:]
    assert torch.equal(share.rows[share.index], whole.rows[whole.index][9:])
