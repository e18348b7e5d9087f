"""JSON read strictly: what Python's parser passes over in silence, or falls over, is one InputError with its place."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, Union

import numpy as np

from utils.errors import InputError
from utils.unpickle import MAX_DEPTH, shown

MAX_MARKS = 24_000_000  # of { [ , : in a JSON file, up to 250 bytes each once read; GTEA's proposals have 0.16 a byte
_MEND = "correct the file there"
_MARKS = bytes({ord(c): m for c, m in zip('[{]}"', (1, 1, 255, 255, 2))}.get(i, 0) for i in range(256))
_DIGITS = bytes(ord("0") if chr(i) in "123456789" else ord("e") if chr(i) == "E" else i for i in range(256))


def read_json(raw: bytes, where: object, allow_nan: bool = False) -> Any:
    """The value of a JSON text in UTF-8.

    InputError, with the line and column or the key in ``where``, for: other encodings, text cut short, a key given
    twice, NaN and infinite numbers (unless ``allow_nan``: then the caller names what holds them), nesting deeper than
    64, and, before anything is made, for more than MAX_MARKS. Standard: RFC 8259.
    """
    if sum(map(raw.count, (b"{", b"[", b",", b":"))) > MAX_MARKS:
        what = f"a JSON file of more than {MAX_MARKS} brackets, commas and colons"
        raise InputError(what, where, "leave out what is not read")
    _check_nesting(raw, where)

    def refuse(literal: str) -> None:
        place = _outside_strings(literal, text)
        raise InputError(f"the number {shown(literal, 40)}, which JSON cannot hold", _place(where, text, place), _MEND)

    def number(literal: str) -> Union[int, float]:
        value = float(literal)
        if math.isinf(value) and not allow_nan:
            refuse(literal)
        return value if re.search("[.eE]", literal) else int(literal)

    def unique(pairs: list) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise InputError("a key given twice", f"{where}, key {shown(key)!r}", "keep one of them")
        return found

    try:
        text = raw.decode("utf-8-sig")
        numbers = {"parse_float": number, "parse_int": number} if _may_overflow(raw) else {}
        value = json.loads(text, object_pairs_hook=unique, parse_constant=float if allow_nan else refuse, **numbers)
        if re.search(rb"\\u[dD][89a-fA-F]", raw):  # half a surrogate pair can be neither printed nor written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", _place(where, text, error.pos), _MEND) from None
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        raise InputError("not UTF-8", _place(where, before, len(before)), "save it as UTF-8") from None
    except UnicodeEncodeError as error:
        around = shown(error.object[max(0, error.start - 20) : error.end])
        raise InputError(f"text that is no Unicode: {around}", where, _MEND) from None
    return value


def _check_nesting(raw: bytes, where: object) -> None:
    """InputError where JSON nests deeper than MAX_DEPTH; array code, since Python's parser would recurse."""
    plain = raw.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    deep, quoted = 0, False  # where the piece before ended
    for start in range(0, len(plain), 1 << 20):
        marks = np.frombuffer(plain[start : start + (1 << 20)].translate(_MARKS), np.int8)
        places = np.flatnonzero(marks)
        marks = np.append([np.int8(2 * quoted)], marks[places])  # +1 and -1: brackets; 2: a quote
        inside = np.logical_xor.accumulate(marks == 2)
        depth = deep + np.cumsum(np.where((marks == 2) | inside, 0, marks))
        if depth.max() > MAX_DEPTH:
            before = raw[: start + places[np.argmax(depth > MAX_DEPTH) - 1]].decode("utf-8", "replace")
            raise InputError(f"nested more than {MAX_DEPTH} deep", _place(where, before, len(before)), _MEND)
        deep, quoted = depth[-1], inside[-1]


def _may_overflow(raw: bytes) -> bool:
    """Whether any literal could be too large for a float: a positive exponent or 300 digits in a row."""
    digits = raw.translate(_DIGITS)
    return any(sign in digits for sign in (b"0e0", b"0e+", b"0" * 300))


def _outside_strings(literal: str, text: str) -> int:
    """Where ``literal`` first stands in JSON text outside its strings."""
    tokens = re.finditer(r'"(?:[^"\\]|\\.)*"|' + re.escape(literal), text, re.DOTALL)
    return next((token.start() for token in tokens if token[0][0] != '"'), 0)


def _place(where: object, text: str, index: int) -> str:
    line = text.count("\n", 0, index) + 1
    return f"{where}, line {line}, column {index - text.rfind(chr(10), 0, index)}"
