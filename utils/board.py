"""TensorBoard: one writer a run, and event files cut back to the epoch a run resumes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, Mapping

from utils.files import atomic


class Board:
    """Writes scalars, options and figures below ``folder``.

    last_step: the last epoch that counts. Events of later epochs, written by a run that was killed before it saved
    its state, are cut off, so that no step stands twice.
    """

    def __init__(self, folder: Path, last_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only a training run needs it

        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("events.*")):
            cut(path, last_step)
        self.writer = SummaryWriter(str(folder), flush_secs=30)

    def options(self, options: Mapping[str, object]) -> None:
        """All options as text."""
        self.writer.add_text("options", "```\n" + json.dumps(options, indent=1, default=str) + "\n```", 0)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """``group/name`` for each value."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def image(self, tag: str, image, step: int) -> None:
        """A picture, uint8 [H, W, 3]."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def cut(path: Path, last_step: int) -> None:
    """Keep the whole records of an event file up to an epoch; a record torn by a crash ends the file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with atomic(path) as scratch:
        with open(scratch, "wb") as file:
            writer = RecordWriter(file)
            for record in RawEventFileLoader(str(path)).Load():
                if Event.FromString(record).step <= last_step:
                    writer.write(record)
            writer.flush()


def read_scalars(folder: Path) -> Dict[str, Dict[int, float]]:
    """Every scalar of a run as TensorBoard's own reader sees it: tag -> {step: value}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
