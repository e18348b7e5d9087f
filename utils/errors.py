"""Bad input in one line: what is wrong, where, and what to do about it (exit status 2)."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Callable, Optional, Sequence

# as torch says it: CUDA, Windows, Linux
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def printable(text: str) -> str:
    """Text of a file as it may be shown: what a terminal would obey or could not print is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    return printable(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


class InputError(Exception):
    """Something the user can correct. ``str(error)`` is the whole line: ``WHAT (WHERE) - WHAT TO DO``."""

    def __init__(self, what: str, where: object = None, todo: Optional[str] = None):
        line = what + (f" ({where})" if where is not None else "") + (f" - {todo}" if todo else "")
        super().__init__(printable(" ".join(line.split())))
        self.what, self.where, self.todo = what, where, todo


def raise_first(problems: Sequence[InputError]) -> None:
    """Raise the first of the problems that readers returned, if there is one."""
    for problem in problems:
        raise problem


def os_error_line(error: OSError) -> str:
    """One line for what the operating system refused, with advice."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "free some disk space; everything written before is whole" if full else "check the path and the permissions"
    return str(InputError(error.strerror or str(error) or type(error).__name__, error.filename, todo))


def run_command(main: Callable[[], Optional[int]]) -> None:
    """Run ``main`` as a command: InputError, OSError and lack of memory end in one ``error:`` line and exit status 2.

    A closed pipe (``… | head``) ends quietly; Ctrl-C ends with status 130. Any other exception is a defect of
    the program and keeps its traceback.
    """
    status, line = 2, None
    try:
        status = main()
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the end
    except InputError as error:
        line = f"error: {error}"
    except BrokenPipeError:
        status = 0
    except OSError as error:
        status, line = 2, f"error: {os_error_line(error)}"
    except KeyboardInterrupt:
        status, line = 130, "interrupted"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        line = "error: out of memory - lower --batch_size or --max_proposal, or free some memory"
    if line:
        with suppress(BrokenPipeError):
            print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at the end, and say so
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
