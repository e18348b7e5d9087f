"""Points: both forms of their files, what is wrong with them in one line, the labels they imply, simulated ones."""

from __future__ import annotations

import numpy as np
import pytest

from generators import points
from utils.datasets.annotations import read_annotations
from utils.errors import InputError
from utils.segments import Segments

LENGTH, RATE = np.asarray([20, 20]), np.asarray([25 / 16, 25 / 16])


def read(tmp_path, text, videos=("a", "b")):
    (tmp_path / "points.csv").write_text(text)
    return points.read_points(tmp_path / "points.csv", videos, LENGTH, RATE, ("jump", "throw"))


def test_both_forms_of_points_are_read_and_no_other_column(tmp_path, capsys):
    found = read(tmp_path, "label,video,time,start\nthrow,v_a,6.4,x\njump,a2,1,\njump,v_a,12.9,")
    assert [p.tolist() for p in found] == [[[10, 1], [19, 0]], []]  # the last lies in a partial snippet
    assert "points of 1 videos are ignored" in capsys.readouterr().err
    (tmp_path / "fps_dict.json").write_text('{"a": 30.0, "b": 24}')
    found = read(tmp_path, "class,class_index,start_frame,stop_frame,video_id,point\njump,x,?,?,b,150\nthrow,,,,a,96\n")
    assert [p.tolist() for p in found] == [[[5, 1]], [[9, 0]]]  # int(point * 25 / (fps * 16))


BAD = {
    "columns": ("video,time\na,1\n", "columns video, time"),
    "class": ("video,label,time\na,run,1\n", r"unknown class 'run' \(.*points.csv, line 2, a\)"),
    "outside": ("video,label,time\nb,jump,3\na,jump,99\n", r"99.000 s of a video of 12.800 s \(.*line 3, a\)"),
    "before": ("video,label,time\na,jump,-1\n", "a point at -1.000 s"),
    "just before": ("video,label,time\na,jump,-0.1\n", "a point at -0.100 s"),
    "text": ("video,label,time\na,jump,soon\n", r"'soon' is no number \(.*line 2\)"),
    "infinite": ("video,label,time\na,jump,inf\n", "'inf' is no number"),
    "none": ("video,label,time\nc,jump,1\n", "no point of a training video"),
    "empty": ("", "not a CSV"),
    "no rate": ("video_id,class,point\na,jump,9\n", "fps_dict.json"),
}


@pytest.mark.parametrize("text, words", BAD.values(), ids=BAD)
def test_bad_points_are_named_in_one_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_the_classes_of_points_are_the_labels_of_their_videos(capsys):
    given = [np.asarray([[3, 1], [4, 1]]), np.zeros((0, 2), np.int64)]
    found = points.labels_of_points(given, np.asarray([[1, 0], [1, 0]], np.float32), ("a", "b"), ("jump", "throw"))
    assert found.tolist() == [[0, 1], [1, 0]]
    said = capsys.readouterr().err
    assert "1 videos name other classes" in said and "a (throw)" in said and "have no point" in said


def test_simulated_points_lie_in_their_instances():
    start = np.linspace(0, 9, 40)
    truth = Segments(("c",), ("a",), np.zeros(40, int), np.c_[start, start + 3], np.zeros(40, int))
    for kind in points.KINDS:
        (found,) = points.simulate_points(truth, ("a",), LENGTH, RATE, kind, 0)
        assert (found[:, 0] >= np.floor(start * RATE[0])).all() and (found[:, 0] <= (start + 3) * RATE[0]).all()


def test_the_real_points_of_thumos(shared, capsys):
    root = shared / "data" / "Thumos14reduced"
    annotations = read_annotations(root / "Thumos14reduced-Annotations").annotations
    labels = np.zeros((len(annotations.videos), 20), np.float32)
    for v, present in enumerate(annotations.labels):
        labels[v, list(present)] = 1
    rate, length = np.full(len(labels), 25 / 16), (annotations.duration_s * 25 / 16).astype(int)
    file = root / "points" / "point_labels.csv"
    found = points.read_points(file, annotations.videos, length, rate, annotations.classes)
    assert sum(map(len, found)) == 3003 and sum(len(p) > 0 for p in found) == 200
    given = points.labels_of_points(found, labels, annotations.videos, annotations.classes)
    assert (given > labels).any(axis=1).sum() == 7 and (given != labels).any(axis=1).sum() == 8
    assert "the points of 8 videos name other classes" in capsys.readouterr().err
