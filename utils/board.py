"""TensorBoard: the event files of a run, written at once and taken back to the epoch a run resumes from."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping

from utils.files import atomic


class Board:
    """Writes scalars, options and figures below ``folder``.

    last_step: the last epoch that counts, -1 for a run from the start. Events of later epochs, written by a run that
    was killed before it saved its state, are taken out, so that no step stands twice.

    Every event is in the file when a method returns. torch's SummaryWriter would write it later, in a thread, and a
    full disk would end that thread with a traceback.
    """

    def __init__(self, folder: Path, last_step: int = -1):
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary  # slow to import, and only a training run needs it

        folder.mkdir(parents=True, exist_ok=True)
        take_back(folder, last_step)
        self._make, self._records = summary, RecordWriter(self)
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}"
        self._add(file_version="brain.Event:2")

    def _add(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())

    def options(self, options: Mapping[str, object]) -> None:
        """All options as text."""
        text = "```\n" + json.dumps(options, indent=1, default=str) + "\n```"
        self._add(summary=self._make.text("options", text), step=0)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """``group/name`` for each value."""
        for name, value in values.items():
            self._add(summary=self._make.scalar(f"{group}/{name}", value), step=step)

    def image(self, tag: str, image, step: int) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._add(summary=self._make.image(tag, image, dataformats="HWC"), step=step)

    def flush(self) -> None:
        """Make the disk hold what the file holds, so that it survives a loss of power as the saved state does."""
        with _naming(self._path), open(self._path, "ab") as file:
            os.fsync(file.fileno())

    close = flush  # no file stays open between events

    def write(self, data: bytes) -> None:
        """Append a record, whole; a full disk is an OSError here and now."""
        left = memoryview(data)
        with _naming(self._path), open(self._path, "ab", buffering=0) as file:
            while left:
                left = left[file.write(left) :]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the file into an OSError that lacks one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def take_back(folder: Path, last_step: int) -> None:
    """Leave one event file with the whole records up to an epoch; a record torn by a crash ends its file.

    The file sorts before all that are named by the clock, so that readers see steps in order whatever the clock does.
    A kill between the writing of it and the end of the others leaves records twice, equal in every bit: once is kept.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    paths = sorted(folder.glob("events.*"))
    before = folder / "events.out.tfevents.0000000000.before"
    records = dict.fromkeys(record for path in paths for record in RawEventFileLoader(str(path)).Load())
    kept = [record for record in records if Event.FromString(record).step <= last_step]
    if kept:
        with atomic(before) as scratch, open(scratch, "wb") as file:
            writer = RecordWriter(file)
            for record in kept:
                writer.write(record)
            writer.flush()
    for path in paths:
        if path != before or not kept:
            path.unlink()
