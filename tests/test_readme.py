"""The README, and those of folders, against the code: tables of recipes and protocols, commands, options, links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from eval.detection import PROTOCOLS
from losses import TERMS
from options import NUMBERS, OPTIONS, RECIPES, parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path for path in (ROOT / "README.md", *ROOT.glob("[!.]*/README.md"), *ROOT.glob("[!.]*/*/README.md"))]
README = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
CODE = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]*)`", README)
LINES = [part for block in CODE for line in block.replace("\\\n", " ").splitlines() for part in line.split("&&")]


def rows_of(*heads):
    """The rows of every table with these columns, as {column: cell}."""
    for block in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        if set(heads) <= set(head):
            yield from (dict(zip(head, row)) for row in rows)


def test_the_table_of_recipes_has_every_number_with_both_values():
    found = {}
    for row in rows_of(*RECIPES):
        for name in re.findall(r"`(?:--)?(\w+)`", " ".join(row.values())):
            found[name] = [row[recipe].strip("`").lower() for recipe in RECIPES]
    for number in NUMBERS:
        assert found.get(number.name) == [str(getattr(number, recipe)).lower() for recipe in RECIPES], number.name


def test_the_table_of_protocols_has_every_protocol():
    named = {name for row in rows_of("protocol", "ground truth") for name in re.findall(r"`(\w+)`", row["protocol"])}
    assert named == set(PROTOCOLS)


def commands():
    """(module, arguments) of each Python command in the README."""
    for line in LINES:
        found = re.search(r"(?:^|/|\s)(?:python3?|torchrun --nproc_per_node \d) (?:-m )?([\w./]+)(.*)", line)
        if found:
            yield found[1], tuple(shlex.split(found[2], comments=True))


@pytest.mark.parametrize("module, words", sorted(set(commands())), ids=str)
def test_a_command_exists_and_knows_its_options(module, words, capsys):
    name = module[: -len(".py")].replace("/", ".") if module.endswith(".py") else module
    assert (ROOT / module).exists() or importlib.util.find_spec(name) is not None
    if name == "main" and "--help" not in words:
        parse(words, tuple(TERMS))
    elif (ROOT / name.replace(".", "/")).with_suffix(".py").exists() and not name.startswith("tests"):
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(name).main([*(word for word in words[:1] if word[:1] != "-"), "--help"])
        text = capsys.readouterr().out
        assert not ended.value.code and all(word in text for word in words if word.startswith("--"))


def test_every_option_that_the_readme_names_exists():
    known = {option.name for options in OPTIONS.values() for option in options} | {n.name for n in NUMBERS} | {"losses"}
    for path in (*ROOT.glob("*.py"), *ROOT.glob("eval/*.py"), *ROOT.glob("utils/tools/*.py")):
        known |= set(re.findall(r'"--(\w+)"', path.read_text(encoding="utf-8")))
    named = {name for line in LINES for name in re.findall(r"(?<![\w-])--(\w+)\b(?!-)", line)}
    assert named - known <= {"help", "nproc_per_node", "logdir"}  # of others: torchrun, tensorboard


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_finds_it(page):
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).is_file()]
