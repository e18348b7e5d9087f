"""JSON is read strictly: what is wrong is one line with its place."""

from __future__ import annotations

import json

import pytest

from tests.make_files import cheaply, refusal
from utils.files import load_json


def test_every_real_json_equals_what_json_loads(shared):
    paths = [path for path in (shared / "data").rglob("*.json")]
    assert len(paths) > 5
    for path in paths:
        assert load_json(path) == json.loads(path.read_text()), path


def test_good_json(tmp_path):
    path = tmp_path / "a.json"
    for text in (
        '{"a": [1, -2.5e3, 1e308, true, null, "\\ud83d\\ude00é", "{[\\"[", "3E+9"]}',
        " 7 ",
        '[{}, ""]',
        "1" * 300,
    ):
        path.write_text(text, encoding="utf-8")
        assert load_json(path) == json.loads(text)
    path.write_bytes(b"\xef\xbb\xbf[1]")  # the mark that some editors put first
    assert load_json(path) == [1]


BAD_JSON = {
    "empty": (b"", "line 1, column 1"),
    "cut": (b'{"a": [1,\n 2', "line 2, column 3"),
    "junk after the end": (b"[]\n[]", "line 2, column 1"),
    "a key twice": (b'{"results": {"v": 1, "w": 2, "v": 3}}', "key 'v'"),
    "NaN": (b'{"NaN": "NaN",\n "a": NaN}', "line 2, column 7"),
    "Infinity": (b"[\n\n-Infinity]", "line 3, column 1"),
    "1e999": (b'["1e999", 1e999]', "line 1, column 11"),
    "-1E+400": (b"[-1E+400]", "line 1, column 2"),
    "integer beyond a float": (b"[" + b"9" * 400 + b"]", "line 1, column 2"),
    "integer of 100,000 digits": (b"[" + b"9" * 100_000 + b"]", "line 1, column 2"),
    "deep": (b"[" * 65 + b"]" * 65, "line 1, column 65"),
    "very deep": (b"\n" + b'{"a":' * 100_000, "line 2, column"),
    "deep behind strings": (b'["]]]]]]\\"]]]]", ' + b"[" * 70 + b"]" * 71, "deep"),
    "latin-1": ('{"a":\n "é"}'.encode("latin-1"), "line 2, column 3"),
    "UTF-16": ("[1]".encode("utf-16"), "UTF-8"),
    "half a surrogate pair": (b'["\\ud800"]', "no Unicode"),
    "single quotes": (b"{'a': 1}", "line 1, column 2"),
    "too large": (b"[" + b"0," * 600 + b"0]", "more than 1000 bytes"),
    "terminal codes in a key": (b'{"\\u001b[31m": 1, "\\u001b[31m": 2}', "x1b"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_one_line_with_its_place(tmp_path, name):
    path = tmp_path / "a.json"
    data, word = BAD_JSON[name]
    path.write_bytes(data)
    assert word in refusal(load_json, path, max_bytes=1000 if name == "too large" else 1 << 20)


@pytest.mark.parametrize(
    "data, word",
    [
        (b"[" + b"{}," * 12_000_000 + b"{}]", "more than 24000000 brackets"),
        (b"[" + b"0," * 24_000_000 + b"0]", "more than 24000000 brackets"),
        (b"[" + b'"' * 40_000_000 + b"]", "not valid JSON"),
    ],
)
def test_what_would_fill_the_memory_is_refused_before_it_is_read(tmp_path, data, word):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with cheaply(4 * len(data) + (16 << 20) >> 20):
        assert word in refusal(load_json, path)


@pytest.mark.parametrize("shift", range(-8, 4))
def test_nesting_is_counted_over_the_pieces_it_is_read_in(tmp_path, shift):
    """Brackets count, and those in strings do not, wherever a piece ends."""
    path, space = tmp_path / "a.json", b" " * ((1 << 20) + shift)
    for depth in (64, 65):
        inside = b"[" * (depth - 1)
        path.write_bytes(b"[" + space + b'"]\\"]]\\\\",' + inside + inside.replace(b"[", b"]") + b"]")
        if depth == 64:
            assert load_json(path)[0] == ']"]]\\'
        else:
            column = len(space) + 2 + len(b'"]\\"]]\\\\",') + 63
            assert f"nested more than 64 deep ({path}, line 1, column {column})" in refusal(load_json, path)
