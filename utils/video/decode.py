"""Frames of a video file at 25 a second, by their time stamps: PyAV decodes, OpenCV resizes.

Two passes over no more than one frame at a time: libav's frames with the time each is first shown, then the frame
that is shown at every k/25 s. So variable and other rates need no care of their own.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Tuple, TypeVar

import numpy as np

from utils.errors import InputError
from utils.video import package

RATE = 25  # frames a second
HEIGHT, WIDTH = 256, 340  # of a frame, whatever its aspect was, as the published features were made
MAX_GAP_S = 600  # a frame that is shown for longer is a damaged time stamp, not a slide
_REMAKE = "if it plays, make it again: ffmpeg -i IN -c:v libx264 OUT.mp4"

Frame = TypeVar("Frame")


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames shown at 0, 1/25, 2/25 … seconds after the first one: uint8 [256, 340, 3], red, green, blue.

    Rotated videos are turned upright. A frame that is shown for longer comes again as the same object. Raises
    InputError for a file that is no video, has no frame, cannot be decoded or ends before its own duration.
    """
    last, image = None, np.empty(0)
    for frame in resample(_stamped(path), RATE, path):
        if frame is not last:
            last, image = frame, _upright(frame, path)
        yield image


def resample(
    stamped: Iterable[Tuple[Fraction, Optional[Fraction], Frame]], rate: int, path: object = None
) -> Iterator[Frame]:
    """The item that is shown at each k/rate seconds after the first, up to the end of the last.

    stamped: (time in seconds at which it is first shown, how long or None if unknown, item) in order of time. A time
    before that of the item in front counts as the same time. An unknown length of the last item is the distance
    before it, or 1/rate for a single item. Raises InputError where an item would be shown for more than MAX_GAP_S.
    """
    count, first, now, gap, item = 0, Fraction(0), None, None, None
    length: Optional[Fraction] = None
    for time, length_given, new in stamped:
        if now is None:
            first, now = time, Fraction(0)
        time = max(time - first, now)
        _check_gap(time - now, now, path)
        while Fraction(count, rate) < time:
            yield item  # type: ignore[misc]
            count += 1
        gap = time - now or gap
        item, now, length = new, time, length_given
    if now is not None:
        length = length or gap or Fraction(1, rate)
        _check_gap(length, now, path)
        while Fraction(count, rate) < now + length:
            yield item  # type: ignore[misc]
            count += 1


def seconds(path: Path) -> Optional[float]:
    """How long the file says that its video is, None where it says nothing. Raises InputError as ``read_frames``."""
    with _opened(path) as container:
        length = _declared(container, _video(container, path))
    return None if length is None else float(length)


def _check_gap(gap: Fraction, now: Fraction, path: object) -> None:
    if gap > MAX_GAP_S:
        raise InputError(f"a time stamp jumps by {float(gap):.0f} s at {float(now):.1f} s", path, _REMAKE)


def _opened(path: Path) -> Any:
    av = package("av")
    if not Path(path).is_file():
        raise InputError("no such file" if not Path(path).exists() else "not a regular file", path, "check the path")
    try:
        # an absolute path is never taken for a protocol, and a playlist in disguise must not reach the network
        container = av.open(os.path.abspath(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except PermissionError:
        raise InputError("the file may not be read", path, "check its permissions") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(f"not a video that can be read: {_reason(error)}", path, _REMAKE) from None
    kind = container.format.name
    if kind == "tty" or kind == "image2" or kind.endswith("_pipe"):  # libav makes frames of text and of pictures, too
        container.close()
        raise InputError("text or a picture, not a video", path, "give files that hold a video")
    return container


def _video(container: Any, path: Path) -> Any:
    best = container.streams.best("video")  # libav prefers a film to the cover picture that files may carry beside it
    if best is None:
        raise InputError("no video stream", path, "give files that hold a video")
    return best


def _declared(container: Any, stream: Any) -> Optional[Fraction]:
    if stream.duration:
        return stream.duration * stream.time_base
    text = stream.metadata.get("DURATION", "")  # Matroska says it as 00:00:14.000000000
    try:
        hours, minutes, rest = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(rest)
    except ValueError:
        pass
    alone = len(container.streams) == 1  # else it is the longest stream's, perhaps the sound's
    return Fraction(container.duration, 1_000_000) if alone and container.duration else None


def _stamped(path: Path) -> Iterator[Tuple[Fraction, Optional[Fraction], Any]]:
    """Decoded frames with the time and the length of each in seconds, in the order they are shown."""
    av = package("av")
    with _opened(path) as container:
        stream = _video(container, path)
        stream.thread_type = "AUTO"
        first, time, length = None, None, None
        usual = 1 / stream.average_rate if stream.average_rate else Fraction(1, RATE)
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames, None)
            except (av.error.FFmpegError, ValueError) as error:
                at = f"at {float(time - first):.1f} s" if first is not None else "at its first frame"
                raise InputError(f"cannot be decoded {at}: {_reason(error)}", path, _REMAKE) from None
            if frame is None:
                break
            base = frame.time_base or stream.time_base
            if frame.pts is not None:
                time = frame.pts * base
            else:  # raw streams have no time stamps
                time = Fraction(0) if time is None else time + (length or usual)
            first = time if first is None else first
            length = frame.duration * base if frame.duration else None
            yield time, length, frame
        if first is None:
            raise InputError("no frame could be decoded", path, _REMAKE)
        declared, end = _declared(container, stream), time - first + (length or usual)
        if declared is not None and end < declared - max(1, declared / 20):
            what = f"ends at {float(end):.1f} s of {float(declared):.1f} s: cut off or damaged"
            raise InputError(what, path, "get it again; or, " + _REMAKE)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0][:100]


def _upright(frame: Any, path: Path) -> np.ndarray:
    """RGB of a decoded frame, turned upright and resized."""
    cv2 = package("cv2")
    try:
        image = frame.to_ndarray(format="rgb24")
    except Exception as error:  # a pixel format that libav cannot convert, or no memory for a crafted size
        raise InputError(f"a frame cannot be converted: {_reason(error)}", path, _REMAKE) from None
    # rotation is counted against the clock, as numpy does
    image = np.rot90(image, round(frame.rotation / 90) % 4)
    height, width = image.shape[:2]
    # bilinear as for the published features; beyond half the size it would leave out pixels
    method = cv2.INTER_AREA if height > 2 * HEIGHT and width > 2 * WIDTH else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (WIDTH, HEIGHT), interpolation=method)
