"""Findings of a check: aligned lines that start with ``ok``, ``note`` or ``error``, and one that counts them."""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from utils.errors import InputError, os_error_line
from utils.report import some

MOST = 8  # lines for the problems of one topic; those that differ in their place alone share a line


class Findings:
    """Writes each finding when it is made. ``note``: worth knowing, nothing stops. ``error``: says what to do."""

    def __init__(self, write: Callable[[str], None] = print):
        self.write = write
        self.counts: Dict[str, int] = Counter()

    def add(self, level: str, topic: str, text: str) -> None:
        """One line; no name from a file can break it or reach the terminal as a command."""
        self.counts[level] += 1
        safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
        self.write(f"{level:<5}  {topic:<11}  {safe}")

    def problems(self, topic: str, problems: Sequence[InputError]) -> None:
        """An error for all that share what is wrong and what to do, with the places where it is."""
        groups: Dict[Tuple, List[str]] = {}
        for problem in problems:
            places = groups.setdefault((problem.what, problem.todo), [])
            if str(problem.where) not in places[-1:]:
                places.append(str(problem.where))
        for (what, todo), (first, *others) in list(groups.items())[:MOST]:
            also = f"; {some([_item(place) for place in others])}" if others else ""
            self.add("error", topic, str(InputError(what, first + also, todo)))
        rest = [_item(place) for places in list(groups.values())[MOST:] for place in places]
        if rest:
            self.add("error", topic, f"{len(rest)} more of this kind: {some(rest)} - mend these and check again")

    def close(self) -> int:
        """The last line; the exit status, 2 with errors."""
        ok, notes, errors = (self.counts[level] for level in ("ok", "note", "error"))
        self.write(f"\n{ok} ok, {many(notes, 'note')}, {many(errors, 'error')}")
        return 2 if errors else 0


def many(number: float, noun: str) -> str:
    """``1 video``, ``2,000 videos``, ``29.97 frames``, ``2 classes``."""
    shown = f"{number:,.0f}" if number == round(number) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def attempt(problems: List[InputError], action: Callable, *arguments: Any) -> Optional[Any]:
    """``action(*arguments)``, or None where that is refused: the refusal then joins ``problems``."""
    try:
        return action(*arguments)
    except InputError as error:
        problems.append(error)
    except OSError as error:
        problems.append(InputError(os_error_line(error)))
    return None


def _item(place: str) -> str:
    """A place without its file: ``FILE, video`` -> ``video``."""
    return place.split(", ", 1)[-1]
