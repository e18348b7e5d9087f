"""Forms of other programs: round trips to the last bit, and each form as its program documents it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from utils.errors import InputError
from utils.formats import FORMS, How, read, rows_by_video, to_frame
from utils.segments import Segments

BACK = ["activitynet", "csv", "fiftyone", "via"]


def segments(scored=True, seed=0, count=40) -> Segments:
    """Names that need quoting, times of many digits, equal times, a video without a segment."""
    rng = np.random.default_rng(seed)
    classes, videos = ('Clean, "and" jerk', "Jump <high>", "跳", "NA"), ("v_a", "b b", "ü.x", "empty", "nan")
    video = rng.choice([0, 1, 2, 4], count)
    start = rng.uniform(0, 1e4, count)
    start[1], length = start[0], rng.exponential(3, count)
    length[2] = 0.0
    score = rng.random(count) ** 3 if scored else None
    return Segments(classes, videos, video, np.stack([start, start + length], 1), rng.integers(0, 4, count), score)


TIMES, LABEL = np.array([[2.0, 3.5], [1.0, 61.25]]), np.array([1, 0])
INSTANCES = Segments(("run", "jump"), ("v", "w"), np.zeros(2, int), TIMES, LABEL)
ONE = dataclasses.replace(INSTANCES, score=np.array([0.5, 0.25]))


def rows(given: Segments) -> list:
    return sorted(map(tuple, to_frame(given).to_numpy(dtype=object).tolist()))


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("name", BACK)
def test_a_round_trip_gives_the_same_bits(tmp_path, name, scored):
    if name == "activitynet" and not scored:  # that is a dataset, and has a command of its own
        return
    given = segments(scored)
    path = tmp_path / f"x{FORMS[name].suffix}"
    path.write_text(FORMS[name].write(given, How(suffix=".mp4" if name == "via" else "")), encoding="utf-8")
    again = read(path)
    assert rows(again) == rows(given) and (again.score is None) == (not scored)
    if name in ("activitynet", "fiftyone"):
        assert again.videos == given.videos
    if name == "fiftyone":
        assert again.classes == given.classes
    for other in BACK[1 - scored :]:  # and through any other form
        path = tmp_path / f"{other}{FORMS[other].suffix}"
        path.write_text(FORMS[other].write(again, How()), encoding="utf-8")
        assert rows(read(path)) == rows(given)


def test_the_csv_is_the_plain_one():
    assert FORMS["csv"].write(ONE, How()) == "video,label,start,end,score\nv,jump,2.0,3.5,0.5\nv,run,1.0,61.25,0.25\n"
    assert FORMS["csv"].write(INSTANCES, How()).startswith("video,label,start,end\nv,jump,2.0,3.5\n")


def test_fiftyone_labels_are_indices_into_its_classes(tmp_path):
    document = json.loads(FORMS["fiftyone"].write(ONE, How()))
    assert document["classes"] == ["run", "jump"] and document["labels"]["w"] == []
    assert document["labels"]["v"][0] == {"label": 1, "timestamps": [2.0, 3.5], "confidence": 0.5}
    (tmp_path / "labels.json").write_text('{"labels": {"v": [{"label": "run", "timestamps": [1, 2]}], "w": null}}')
    found = read(tmp_path / "labels.json")
    assert found.classes == ("run",) and found.videos == ("v", "w") and found.score is None


def test_via_rows_as_the_annotator_writes_them(tmp_path):
    head, row, *_ = FORMS["via"].write(ONE, How(suffix=".mp4")).splitlines()
    assert head == "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
    assert row == '"1","[""v.mp4""]",0,"[2.0, 3.5]","[]","{""TEMPORAL-SEGMENTS"": ""jump"", ""score"": ""0.5""}"'
    text = f'# Exported using VIA\n{head}\n"1_a","[""clip.MP4""]",0,"[2.33,5.4]","[]","{{""1"":""run""}}"\n'
    point = '"1_b","[""other.clip""]",0,[3.5],[],"{""TEMPORAL-SEGMENTS"":""jump""}"\n'
    (tmp_path / "via.csv").write_text(text + point)
    assert rows(read(tmp_path / "via.csv")) == [("clip", "run", 2.33, 5.4), ("other.clip", "jump", 3.5, 3.5)]


def test_label_studio_counts_frames_from_one_with_both_ends():
    (v, w) = json.loads(FORMS["labelstudio"].write(ONE, How(fps=25.0, suffix=".mp4")))
    assert v["data"] == {"video": "v.mp4"} and w["predictions"] == [{"result": []}]
    first = v["predictions"][0]["result"][0]
    assert first["value"] == {"ranges": [{"start": 51, "end": 88}], "timelinelabels": ["jump"]}  # frames 50 to 87 of 0…
    assert (first["type"], first["score"]) == ("timelinelabels", 0.5)
    assert "annotations" in json.loads(FORMS["labelstudio"].write(INSTANCES, How(fps=30)))[0]
    with pytest.raises(InputError, match="--fps"):
        FORMS["labelstudio"].write(ONE, How())


def test_subtitles_and_label_tracks_are_in_order_of_time():
    vtt = FORMS["vtt"].write(rows_by_video(ONE)["v"], How())
    assert vtt == "WEBVTT\n\n00:00:01.000 --> 00:01:01.250\nrun 0.250\n\n00:00:02.000 --> 00:00:03.500\njump 0.500\n"
    track = FORMS["audacity"].write(rows_by_video(INSTANCES)["v"], How())
    assert track == "1.000000\t61.250000\trun\n2.000000\t3.500000\tjump\n"
    odd = [("a\n-->\tb & c", 7199.9996, 7199.9996, None)]
    assert FORMS["vtt"].write(odd, How()).splitlines()[2:] == ["02:00:00.000 --> 02:00:00.001", "a --&gt; b &amp; c"]
    assert FORMS["audacity"].write(odd, How()).count("\t") == 2


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", "video,label,start,end\nv,run,1,2\nv,run,2,1\n", "line 3"),
        ("a.csv", "video,label,start,end\nv,run,1\n", "line 2"),
        ("a.csv", "video,label,start,end,score\nv,run,1,2,nan\n", "line 2"),
        ("a.csv", "# CSV_HEADER = metadata_id\n1,v,0,[1],[],{}\n", "line 2"),
        ("a.json", '{"classes": ["a"], "labels": {"v": [{"label": 1, "timestamps": [1, 2]}]}}', "v, index 0"),
        ("a.json", '{"labels": {"v": [{"label": "a", "support": [1, 2]}]}}', "v, index 0"),
        ("a.csv", "video,label,start,end,score\nv,run,1,2,\n", "line 2"),
        ("a.json", '{"results": {"v": [{"segment": [2, 1], "label": "a", "score": 1}]}}', "v, index 0"),
        ("a.json", '{"results": [], "labels": 3}', "no 'results'"),
    ],
)  # fmt: skip
def test_malformed_files_are_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert words in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("text", ["video,subset,label,start,end\nv,s,run,1,2\n", "a,b\n", ""])
def test_other_files_are_none_of_these_forms(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.json").write_text('{"database": {}}')
    assert read(tmp_path / "a.csv") is None and read(tmp_path / "a.json") is None and read(tmp_path / "a.npy") is None
