"""The direction of imports: options <- utils <- dataset, proposals, descriptors <- model <- losses <- eval <- main."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["options", "utils", "dataset proposals descriptors", "model", "losses", "eval", "main"]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}
# run by a person, imported by nothing else: it measures the whole
COMMANDS = {"utils/benchmark.py", "utils/padded.py"}


def imports(path: Path) -> set:
    """Modules of the project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name for name in found if name and name.split(".")[0] in LEVEL}


def test_imports_go_one_way():
    sources = {p.relative_to(ROOT).as_posix(): p for name in LEVEL for p in [ROOT / f"{name}.py"] if p.exists()}
    sources.update({p.relative_to(ROOT).as_posix(): p for d in ("utils", "eval") for p in (ROOT / d).glob("*.py")})
    assert len(sources) > 30
    for name, path in sources.items():
        own = LEVEL[Path(name).parts[0].split(".")[0]]
        for module in imports(path):
            assert module.replace(".", "/") + ".py" not in COMMANDS, f"{name} imports {module}"
            assert name in COMMANDS or LEVEL[module.split(".")[0]] <= own, f"{name} imports {module}"


def test_no_two_modules_import_each_other():
    paths = [p for p in [*ROOT.glob("*.py"), *ROOT.glob("utils/*.py"), *ROOT.glob("eval/*.py")]]
    graph = {".".join(p.relative_to(ROOT).with_suffix("").parts): imports(p) for p in paths}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        path.append(module)
        for other in graph.get(module, ()):
            visit(other)
        done.add(path.pop())

    for module in graph:
        visit(module)
