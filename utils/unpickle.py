"""Pickle's stack machine for plain data: nothing that a file names is ever imported, looked up or called.

``pickletools.genops`` reads the opcodes. This module gives a meaning to those that containers, strings, bytes and
numbers need, and each global a pickle may name is a function of this project: utils.npy has the rules of arrays,
utils.scan those of checkpoints. Any other name, opcode or state is refused where it is asked for.

Memory: arrays together hold at most twice the pickle's bytes, and everything else, as estimated from the opcodes, at
most 32 times its bytes plus 128 MiB. One opcode, a byte, can make a set of 216.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from typing import Any, BinaryIO, Callable, Dict, NamedTuple, Optional

import numpy as np

MAX_STEPS = 10_000_000  # opcodes of one pickle; the largest real file here (ActivityNet segments) has 180,000
ROOM = 32  # times a pickle's bytes may be taken by the values in it; GTEA's segments are estimated at 52 ...
FLOOR = 1 << 27  # ... which is for small files; ActivityNet's segments, the largest real ones here, are at 23
MAX_DEPTH = 64  # containers inside containers
MAX_LINE = 4096  # bytes of a text argument (protocol 0), names of globals among them
MAX_BITS = 1024  # of one integer: generators keep 128-bit states, and printing a huge integer takes quadratic time


class Refused(Exception):
    """Content that is damaged or asks for more than plain data. ``todo`` is the advice for the person."""

    def __init__(self, what: str, todo: str = "get or make the file again"):
        super().__init__(what)
        self.todo = todo


def shown(value: object, length: int = 100) -> str:
    """Something from a file, safe to print: ASCII only, no control characters, cut to ``length``, never expanded."""
    if type(value) is tuple and len(value) <= 64 and all(type(n) is int for n in value):
        value = str(value)
    if not isinstance(value, (str, int)):
        return f"a {type(value).__name__.lstrip('_')}"
    text = ascii(str(value)[:length])[1:-1]
    return text if len(text) < length else text[: length - 3] + "..."


class Judged:
    """Stand-in of a value that has been judged and not been made."""


class Window:
    """The next ``left`` bytes of a stream, as genops reads them; a request for more is refused before it is served."""

    def __init__(self, stream: BinaryIO, left: int):
        self.stream, self.left = stream, left

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise Refused("the pickle in it ends early")
        data = self.stream.read(count)
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        line = self.stream.readline(min(MAX_LINE, self.left))
        self.left -= len(line)
        return line


class Asked:
    """A global that a pickle may name: what stands in for it, or None where it may be named but not called."""

    def __init__(self, name: str, call: Optional[Callable]):
        self.name, self.call = name, call


# Which opcodes push what. genops has already decoded the argument of a literal.
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_PYTHON2_STRINGS = frozenset(["STRING", "BINSTRING", "SHORT_BINSTRING"])
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEW = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_COSTS = {  # bytes that an opcode may take for good, on the high side; any other one, a slot and a number: 32
    **dict.fromkeys("EMPTY_LIST LIST MARK TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL".split(), 128),
    **dict.fromkeys("PUT BINPUT LONG_BINPUT MEMOIZE".split(), 128),
    **dict.fromkeys("EMPTY_DICT DICT EMPTY_SET FROZENSET REDUCE".split(), 256),
}
_PUTS = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])
_GETS = frozenset(["GET", "BINGET", "LONG_BINGET"])
DICTS = (dict, OrderedDict)
_ATOMS = (str, bytes, bytearray, bool, int, float, complex, np.ndarray, np.generic, Judged)


class Rules(NamedTuple):
    """What a pickle may ask for. Each function gets the machine first and raises Refused where it disagrees."""

    calls: Dict[str, Optional[Callable]]  # "module name" -> what stands in for that global
    build: Callable[[Machine, Any, Any], None]  # (machine, object, state): BUILD, pickle's __setstate__
    advice: str  # what to do with a file that asks for more


def load_pickle(window: Window, rules: Rules, refer: Optional[Callable[[Any], Any]] = None) -> Any:
    """The plain value of the one pickle at the start of ``window``.

    ``refer`` gives what a persistent id stands for (None: such ids are refused). Raises Refused.
    """
    machine = Machine(window, rules, refer)
    try:
        value = machine.run()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Refused("the pickle in it makes no sense") from error  # opcodes that do not fit each other
    _check_plain(value, 4 * machine.steps + 1000)
    return value


class Machine:
    """One run: the stack, the marks in it, and what is left of the limits."""

    def __init__(self, window: Window, rules: Rules, refer: Optional[Callable[[Any], Any]]):
        self.window, self.rules, self.refer = window, rules, refer
        self.budget = 2 * window.left  # bytes: array data, and once more where it travels as Latin-1 text
        self.room = ROOM * window.left + FLOOR
        self.steps = 0
        self.nested = 0
        self.stack: list = []
        self.marks: list = []

    def spend(self, count: int) -> None:
        """Take ``count`` bytes of array data: a string shared through the memo must not become gigabytes."""
        self.budget -= count
        if self.budget < 0:
            raise Refused("its arrays are larger than the file that declares them")

    def run(self) -> Any:
        memo: dict = {}
        for opcode, arg, _ in pickletools.genops(self.window):
            name, stack = opcode.name, self.stack
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Refused(f"the pickle in it has more than {MAX_STEPS} steps")
            self.room -= _COSTS.get(name, 32)
            if self.room < 0:
                raise Refused("the pickle in it would take far more memory than its bytes")
            if name in _LITERALS:
                stack.append(_literal(arg))
            elif name in _PUTS:
                memo[arg] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _GETS:
                stack.append(memo[arg])
            elif name in _PYTHON2_STRINGS:  # text where it can be (as Python's own loader), else the bytes
                stack.append(arg if arg.isascii() else arg.encode("latin-1"))
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _NEW:
                stack.append(_NEW[name]())
            elif name == "MARK":
                self.marks.append(stack)
                self.stack = []
            elif name in _TUPLES:
                items = [stack.pop() for _ in range(_TUPLES[name])]
                stack.append(tuple(items[::-1]))
            elif name in _MAKE:
                items = self._from_mark()
                self.stack.append(_MAKE[name](items))
            elif name in ("APPEND", "APPENDS"):
                items = [stack.pop()] if name == "APPEND" else self._from_mark()
                self._top(list).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._from_mark()
                self._top(*DICTS).update(_dict(items))
            elif name == "ADDITEMS":
                items = self._from_mark()
                self._top(set).update(plain_keys(items))
            elif name == "GLOBAL":
                stack.append(self._find(arg))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if type(attribute) is not str or type(module) is not str:
                    raise Refused("asks for something that has no name")
                stack.append(self._find(f"{module} {attribute}"))
            elif name == "REDUCE":
                args, asked = stack.pop(), stack.pop()
                if type(asked) is not Asked or asked.call is None or type(args) is not tuple:
                    raise Refused(f"calls {getattr(asked, 'name', 'something that is no function')}")
                stack.append(asked.call(self, *args))
            elif name == "BUILD":
                state = stack.pop()
                self.rules.build(self, stack[-1], state)
            elif name == "BINPERSID" and self.refer is not None:
                stack.append(self.refer(stack.pop()))
            elif name == "STOP":
                (value,) = stack
                return value
            elif name not in ("PROTO", "FRAME"):
                detail = "" if arg is None else " " + shown(arg).replace(" ", ".")
                raise Refused(f"uses pickle's {name}{detail}, which plain data does not need", self.rules.advice)
        raise Refused("the pickle in it ends early")

    def _from_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _top(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise Refused(f"adds items to a {type(self.stack[-1]).__name__.lstrip('_')}")
        return self.stack[-1]

    def _find(self, name: str) -> Asked:
        if name not in self.rules.calls:
            raise Refused(
                f"asks for {shown(name.replace(' ', '.'))}, and a file may hold plain arrays and data only",
                self.rules.advice,
            )
        return Asked(name.replace(" ", "."), self.rules.calls[name])


def _literal(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise Refused(f"an integer of {value.bit_length()} bits")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair: could be neither printed nor written
            raise Refused(f"text that is no Unicode: {shown(value)}") from None
    return value


def plain_keys(items: Any) -> Any:
    """Keys whose hashes cannot be made to collide (quadratic time) or to recurse (nested tuples)."""
    for key in items:
        if not (key is None or type(key) in (str, bytes, bool) or type(key) is int and abs(key) < 1 << 60):
            raise Refused(f"a {type(key).__name__.lstrip('_')} as a key or an element of a set")
    return items


def _dict(items: list) -> dict:
    if len(items) % 2:
        raise Refused("a key without a value")
    return dict(zip(plain_keys(items[::2]), items[1::2]))


_MAKE = {"TUPLE": tuple, "LIST": list, "DICT": _dict, "FROZENSET": lambda items: frozenset(plain_keys(items))}


def _check_plain(value: Any, limit: int) -> None:
    """Refuse stand-ins left as values, loops and nesting that explodes when it is walked.

    Shared parts count as often as they occur, so that ``limit`` bounds the time of any later walk.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        children: list = []
        for item in level:
            kind = type(item)
            if kind in DICTS:
                inside = [*item, *item.values()]
            elif kind in (list, tuple, set, frozenset):
                inside = item
            elif kind is np.ndarray and item.dtype.hasobject:
                inside = item.ravel().tolist()
            elif item is None or isinstance(item, _ATOMS):
                continue
            else:
                raise Refused(f"a {getattr(item, 'name', kind.__name__.lstrip('_'))} where data should stand")
            limit -= len(inside)
            if limit < 0:
                raise Refused("its parts repeat each other without end")
            children.extend(inside)
        if not children:
            return
        level = children
    raise Refused(f"nested more than {MAX_DEPTH} deep")


def encode_bytes(machine: Machine, text: Any, encoding: Any) -> bytes:
    """_codecs.encode: how protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused(f"asks for _codecs.encode to {shown(encoding)}", machine.rules.advice)
    machine.spend(len(text))
    return text.encode("latin-1")
