"""Splits and batches: which videos are in, what training may read, and a video alone as in any batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import dataset
from dataset import epoch_order, packed_batch
from tests import tiny
from tests.changes import data_of, document, remove, setting, split_of
from tests.tiny import DURATION, FEATURES, TEST, TRAIN
from utils.datasets.simulate import make_demo
from utils.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def test_a_dataset_is_what_its_files_say(root):
    data = data_of(root)
    assert (data.name, data.classes, data.simulated, data.ambiguous_s) == ("Tiny", ("jump", "throw"), False, {})
    assert [data.train.videos, data.test.videos] == [tuple(f"video_{i:02d}" for i in v) for v in (range(5), (5, 6, 7))]
    np.testing.assert_array_equal(data.train.labels, [[1, 0], [0, 1]] * 2 + [[1, 0]])
    np.testing.assert_allclose(data.train.num_snippets / data.train.rate, data.train.length_s)
    first = json.loads((root / TRAIN).read_text())["results"]["video_00"][0]["segment"]
    assert data.train.proposals[0][0].tolist() == [round(x * 25 / 16, 2) for x in first]
    assert data.truth.videos == data.test.videos and len(data.truth.video) == 6


def test_excluded_and_featureless_videos_are_no_truth_and_what_is_missing_is_counted(root, capsys):
    setting(excluded_videos=["video_06"])(root)
    remove(f"{FEATURES}/video_02.npy")(root)
    remove(f"{FEATURES}/video_07.npy")(root)
    document(TEST, lambda d: d["results"].update(video_05=[]))(root)
    data, log = data_of(root), capsys.readouterr().err
    assert "video_02" not in data.train.videos and data.truth.videos == ("video_05",)
    assert [len(p) for p in data.test.proposals] == [0, 9] and data.test.scored.tolist() == [1]  # no box is invented
    assert "4 of 5 train videos have features; missing: video_02" in log
    assert "1 of 2 test videos have no proposal (no detections from them): video_05" in log


def test_without_test_videos_training_alone_is_left(root, capsys):
    setting(test_subset="nobody")(root)
    data = data_of(root)
    assert data.test is None and len(data.train.videos) == 5 and "no test videos" in capsys.readouterr().err
    with pytest.raises(InputError, match="no video in subset 'nobody'.*subsets are"):
        data_of(root, splits=["test"])


def test_where_no_duration_is_known_a_proposal_may_end_with_the_last_partial_snippet(root):
    remove(DURATION)(root)
    for late in (0.0, 0.1):
        end_s = (len(np.load(root / FEATURES / "video_00.npy")) + 1) * 0.64 + late
        document(TRAIN, lambda d, e=end_s: d["results"]["video_00"].append({"segment": [0, e]}))(root)
        if not late:
            assert len(data_of(root).train.proposals[0]) == 10
    with pytest.raises(InputError, match="no segment of a video .*train.json, video_00, index 10"):
        data_of(root)


@pytest.mark.parametrize("flag, words", [("num_class", "2 classes, --num_class 3"), ("feature_size", "not of width 3")])
def test_a_flag_that_disagrees_with_the_data_is_an_error(root, flag, words):
    with pytest.raises(InputError, match=words):
        data_of(root, None, f"--{flag}", 3)


def test_the_demo_is_made_on_first_use_and_is_simulated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "make_demo", lambda *a, **k: make_demo(*a, **k, videos=(6, 3), width=4))
    more = ["--dataset_name", "Demo", "--proposals_root", tmp_path / "proposals"]
    for made in (True, False):
        data = data_of(tmp_path / "Demo", None, *more)
        assert data.simulated and len(data.test.videos) == 3 and ("making" in capsys.readouterr().err) == made
    remove("Proposals_Demo_train.json")(tmp_path / "proposals")
    with pytest.raises(InputError, match="the Demo without its proposals"):
        data_of(tmp_path / "Demo", None, *more)


def test_batches_cover_an_epoch_in_an_order_of_its_own_and_drop_the_partial_one():
    videos = np.arange(5, 28)
    first, second = (epoch_order(videos, 10, 0, epoch) for epoch in (1, 2))
    assert [len(b) for b in first] == [10, 10]
    assert len(set(np.concatenate(first))) == 20 and set(np.concatenate(first)) <= set(videos)
    assert not np.array_equal(first, second) and np.array_equal(first, epoch_order(videos, 10, 0, 1))
    assert [len(b) for b in epoch_order(videos[:3], 10, 0, 1)] == [3]


def test_a_packed_batch_holds_each_video_as_it_is_alone(root):
    split = split_of(root)
    inputs, batch = packed_batch(split, [2, 0], CPU, (np.arange(5), np.arange(5) % 3))
    assert batch.packing.counts == (9, 9) and batch.names == ("video_02", "video_00") and len(inputs.rows) == 16
    assert batch.pseudo_label.tolist() == [2, 0] and batch.confidence.tolist() == [2, 0]
    for place, v in enumerate((2, 0)):
        one, alone = packed_batch(split, [v], CPU)
        mine = batch.packing.video == place
        assert torch.equal(inputs.rows[inputs.index[mine]], one.rows[one.index])
        assert torch.equal(batch.proposals[mine], alone.proposals)
        np.testing.assert_array_equal(batch.labels[place], split.labels[v])


def test_max_proposal_takes_a_random_subset_that_everything_downstream_shares(root):
    split, seen = split_of(root), set()
    full, whole = packed_batch(split, [1], CPU)
    for epoch in range(6):
        how = dict(max_proposal=4, seed=3, epoch=epoch)
        inputs, batch = packed_batch(split, [1, 0], CPU, **how)
        assert batch.packing.counts == (4, 4)
        assert torch.equal(batch.proposals[:4], packed_batch(split, [1], CPU, **how)[1].proposals)  # alone: the same
        for proposal, row in zip(batch.proposals[:4], inputs.rows[inputs.index[:4]]):
            twin = (whole.proposals == proposal).all(1).nonzero()[0, 0]
            assert torch.equal(row, full.rows[full.index[twin]])
        seen.add(tuple(batch.proposals[:4, 0].tolist()))
    assert len(seen) > 1
