"""Frames by time stamps: every rate, turned videos, and files that are damaged or no videos."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.video_files import bright, make_video, number, rotate
from utils.errors import InputError
from utils.video.decode import MAX_GAP_S, read_frames, resample, seconds

LIBRARIES = ("av", "cv2")


files = pytest.mark.usefixtures("with_libraries")


@pytest.fixture()
def with_libraries():
    for name in LIBRARIES:
        pytest.importorskip(name, reason="PyAV and OpenCV (requirements-video.txt) are not installed")


def shown(times, rate=25, lengths=None):
    """What ``resample`` shows of items 0, 1 … that begin at ``times`` (seconds, as text or numbers)."""
    lengths = lengths or [None] * len(times)
    stamped = [(Fraction(t), None if n is None else Fraction(n), i) for i, (t, n) in enumerate(zip(times, lengths))]
    return list(resample(stamped, rate))


@pytest.mark.parametrize("rate", [1, 8, 12, 24, 25, 30, 50, 60, Fraction(30000, 1001), Fraction(981, 50)])
def test_any_rate_shows_the_frame_on_the_screen(rate):
    count = 90
    found = shown([Fraction(i) / rate for i in range(count)])
    # at k/25 s the last frame that has begun is on the screen, and the last one stays for its own length
    assert found == [k * rate // 25 for k in range(int(-(-count * 25 // rate)))]


def test_stamps_begin_anywhere_and_may_vary():
    assert shown(["7", "7.04", "7.08", "7.2", "7.24", "7.5"]) == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, *[5] * 6]
    assert shown(["-0.1", "-0.06"]) == [0, 1]


def test_the_last_frame_stays_for_the_length_it_names():
    assert shown(["0", "0.04"], lengths=[None, "0.12"]) == [0, 1, 1, 1]
    assert shown(["0", "0.2"]) == [0] * 5 + [1] * 5
    assert shown(["5"]) == [0]
    assert shown([]) == []


def test_stamps_that_go_back_never_go_back_in_time():
    assert shown(["0", "0.08", "0.04", "0.12"], lengths=[None, None, None, "0.04"]) == [0, 0, 2, 3]


def test_a_jump_of_hours_is_a_damaged_stamp():
    with pytest.raises(InputError, match="jumps by 95443"):
        shown(["0", "0.04", str(95443)])
    assert len(shown(["0", str(MAX_GAP_S)], rate=1, lengths=[None, "1"])) == MAX_GAP_S + 1


@files
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_frames_of_a_video_in_order(tmp_path, suffix):
    path = make_video(tmp_path / f"plain.{suffix}", 18)
    frames = list(read_frames(path))
    assert [number(frame) for frame in frames] == list(range(18))
    assert all(f.shape == (256, 340, 3) and f.dtype == np.uint8 and bright(f) == [2, 0, 1, 0] for f in frames)
    assert seconds(path) == pytest.approx(18 / 25)


@files
def test_other_rates_and_variable_ones(tmp_path):
    fast = [number(f) for f in read_frames(make_video(tmp_path / "fast.mp4", 16, rate=50))]
    assert fast == list(range(0, 16, 2))
    slow = list(read_frames(make_video(tmp_path / "slow.mp4", 6, rate=10)))
    assert [number(f) for f in slow] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    assert slow[0] is slow[1] and slow[2] is not slow[3]
    times = [0, 40, 80, 200, 240, 500]
    for suffix in ("mp4", "mkv"):
        found = [number(f) for f in read_frames(make_video(tmp_path / f"vary.{suffix}", 6, times_ms=times))]
        assert found == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 5]


@files
@pytest.mark.parametrize("turns, corners", [(1, [1, 2, 0, 0]), (2, [0, 1, 0, 2]), (3, [0, 0, 2, 1])])
def test_rotated_videos_are_upright(tmp_path, turns, corners):
    path = rotate(make_video(tmp_path / "turned.mp4", 2), turns)
    frames = list(read_frames(path))
    assert len(frames) == 2 and frames[0].shape == (256, 340, 3)
    assert bright(frames[0]) == corners


@files
def test_a_large_video_is_made_smaller_with_all_its_pixels(tmp_path):
    frames = list(read_frames(make_video(tmp_path / "large.mp4", 2, size=(720, 1280))))
    assert [number(f) for f in frames] == [0, 1] and frames[0].shape == (256, 340, 3)


@files
@pytest.mark.parametrize("suffix, options", [("mp4", None), ("mp4", {"movflags": "faststart"}), ("mkv", None)])
def test_a_video_cut_off_in_the_middle_is_refused(tmp_path, suffix, options):
    path = make_video(tmp_path / f"cut.{suffix}", 100, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(InputError, match=r"(ends at 2\.\d s of 4\.0 s|not a video that can be read).*cut\."):
        list(read_frames(path))


@files
def test_what_holds_no_frames_is_refused(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    text = tmp_path / "text.txt"
    text.write_text("no video at all\n" * 50)
    playlist = tmp_path / "list.mp4"  # must not be followed
    playlist.write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    header = make_video(tmp_path / "header.mkv", 0)
    bare = make_video(tmp_path / "bare.mp4", 9, options={"movflags": "faststart"})
    bare.write_bytes(bare.read_bytes()[: bare.read_bytes().index(b"mdat") + 4])  # an index of frames that are not there
    sound = make_video(tmp_path / "sound.mkv", 0, sound_only=True)
    for path, words in [
        (empty, "not a video that can be read"),
        (text, "text or a picture"),
        (playlist, "not a video that can be read"),
        (header, "not a video that can be read"),
        (bare, "no frame could be decoded"),
        (sound, "no video stream"),
        (tmp_path / "absent.mp4", "no such file"),
        (tmp_path, "not a regular file"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            list(read_frames(path))
        assert str(path) in str(caught.value)
