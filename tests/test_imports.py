"""A module imports from its own floor or lower ones, no two import each other, and no file is too long."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    "options",
    "utils",
    "utils.datasets utils.run utils.video",
    "dataset proposals descriptors generators",
    "model losses",
    "eval",
    "main",
    "utils.tools",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
PATHS = [*ROOT.glob("*.py"), *(p for room in ("utils", "eval", "generators") for p in (ROOT / room).rglob("*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PATHS if path.stat().st_size}


def floor(module):
    """That of the module, or of the innermost folder that has one."""
    while module not in FLOOR:
        module, dot, _ = module.rpartition(".")
        assert dot, "a module on no floor"
    return FLOOR[module]


def imports(module):
    """Modules of the program that one imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(MODULES) - {module}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    """So nothing but a tool imports a tool."""
    assert not [other for other in imports(module) if floor(other) > floor(module)]


def test_no_two_modules_import_each_other():
    TopologicalSorter({module: imports(module) for module in MODULES}).prepare()  # CycleError names them


def test_no_file_of_the_program_has_more_than_350_lines():
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module: n for module, n in lines.items() if n > 350} and len(lines) > 30
