"""The command line: every default and its reason are in the help, every number of a recipe is a flag."""

from __future__ import annotations

import pickle
import re

import pytest

from losses import TERMS
from options import NUMBERS, OPTIONS, RECIPES, Options, parse, parser, restore

NAMES = tuple(TERMS)


def squeezed(text):
    """Without blanks, since the help breaks its lines at blanks and hyphens."""
    return "".join(str(text).split())


ENTRIES = re.findall(r"^  --(\w+)(.*?)(?=^\S|^  -|\Z)", parser(NAMES).format_help(), re.MULTILINE | re.DOTALL)
HELP = {name: squeezed(text) for name, text in ENTRIES}


def test_the_help_shows_every_option_with_its_default_and_the_reason():
    every = [option for options in OPTIONS.values() for option in options]
    assert set(HELP) == {option.name for option in every} | {row.name for row in NUMBERS} | {"losses"}
    args = parse([], NAMES)
    for option in every:
        assert getattr(args, option.name) == option.default and squeezed(option.help) in HELP[option.name]
        if option.default not in (None, False):
            reason = f"; {option.why}" if option.why else ""
            assert HELP[option.name].endswith(squeezed(f"(default: {option.default}{reason})"))
    assert args.losses == NAMES and squeezed("any of sme,pc,sc, or none (default: all)") in HELP["losses"]


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
def test_every_number_of_a_recipe_is_a_flag_with_both_values_in_its_help(row):
    values = " / ".join(str(x).lower() for x in (row.release, row.paper))
    assert HELP[row.name].endswith(squeezed(f"{row.meaning} (release / paper: {values})"))
    other = row.kind[0] if isinstance(row.kind, tuple) else "false" if isinstance(row.paper, bool) else "1"
    for recipe, numbers in RECIPES.items():
        assert parse(["--recipe", recipe], NAMES).numbers == numbers
        args = parse(["--recipe", recipe, f"--{row.name}", other], NAMES)
        value = getattr(args, row.name)
        assert type(value) is type(row.paper) and str(value).lower() in (other, f"{other}.0")
        assert args.numbers == numbers._replace(**{row.name: value})


def test_options_are_read_only_and_travel_between_processes():
    args = parse(["--losses", "sc,sme"], NAMES)
    assert args.losses == ("sme", "sc") and parse(["--losses", "none"], NAMES).losses == ()
    with pytest.raises(AttributeError, match=r"read-only: use replace\(seed=…\)"):
        args.seed = 3
    assert args.replace(seed=3).seed == 3 and args.seed == 0
    assert pickle.loads(pickle.dumps(args)) == args and isinstance(args.replace(), Options)


def test_what_trained_a_checkpoint_is_restored_from_plain_data_and_nothing_else_is():
    args = parse([], NAMES)
    values = {"losses": ["sc"], "gamma": 0.5, "share_rows": True, "lr": 1e-3, "sme_labels": "high", "max_epoch": 7}
    again = restore(args, values, NAMES)
    assert {name: getattr(again, name) for name in values} == {**values, "losses": ("sc",)}
    assert again.numbers == args.numbers._replace(gamma=0.5, sme_labels="high")
    assert restore(args, {"losses": []}, NAMES).losses == ()
    for name, value in (("gamma", 2), ("gamma", "x"), ("losses", ["xy"]), ("share_rows", 1), ("max_epoch", 7.5),
                        ("sme_labels", "low"), ("lr", None), ("lr", float("nan"))):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            restore(args, {name: value}, NAMES)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--gam", "1"], "--gam"),
        (["--gamma", "1.5"], "1.5 is not in [0, 1]"),
        (["--lr", "0"], "0 is not in (0, "),
        (["--batch_size", "2.5"], "invalid whole number value: '2.5'"),
        (["--pc_all_pairs", "maybe"], "neither true nor false"),
        (["--losses", "sme,xy"], "no subset of sme,pc,sc"),
        (["--losses", "sme,sme"], "no subset of sme,pc,sc"),
        (["--roi_size", "8"], "8 is no multiple of 6"),
        (["--resume"], "--resume needs --exp_dir"),
        (["--run_type", "test"], "--run_type test needs --pretrained_ckpt"),
        (["--pretrained_ckpt", "x"], "is for --run_type test and predict; a run continues with --resume"),
        (["--run_type", "test", "--pretrained_ckpt", "x", "--seeds", "0"], "--seeds is for --run_type train"),
        (["--seeds", "1", "1"], "duplicate seed"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_status_2(capsys, argv, words):
    with pytest.raises(SystemExit) as ended:
        parse(argv, NAMES)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and words in line and line.count("\n") == 1
    assert line.startswith("error: ") and line.endswith("see main.py --help\n")
