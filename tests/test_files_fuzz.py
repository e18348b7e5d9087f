"""The mutation fuzzer, for some seconds; ``python -m tests.fuzz_files`` runs it for longer."""

from __future__ import annotations

import pytest

from tests.fuzz_files import KINDS, fuzz, try_case
from utils.errors import InputError

CASES = 2400


def test_the_seeds_themselves_load(tmp_path):
    for kind in KINDS.values():
        for seed in kind.seeds:
            assert try_case(kind, kind.wrap(seed), tmp_path / "file") == "loaded"


def test_every_mutation_loads_or_is_refused():
    outcomes = fuzz(CASES, seed=0)
    assert sum(outcomes.values()) == CASES
    for name in KINDS:  # both ways are taken, so that neither check is idle
        assert outcomes[name, "loaded"] and outcomes[name, "refused"], name


def unprintable():
    error = InputError("a bell")
    error.args = ("a \a",)  # InputError itself would have escaped it
    return error


@pytest.mark.parametrize("defect", [ValueError("x"), unprintable(), "object"])
def test_the_fuzzer_notices_defects(tmp_path, monkeypatch, defect):
    def broken(path):
        if isinstance(defect, Exception):
            raise defect
        return object()

    monkeypatch.setitem(KINDS, "json", KINDS["json"]._replace(load=broken))
    with pytest.raises(AssertionError, match="json, seed 1, case 0"):
        fuzz(1, seed=1, only="json")
