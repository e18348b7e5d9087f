"""``python -m utils.tools.demo``: the commands that it prints work."""

from __future__ import annotations

import shlex
import shutil

import pytest

from tests.outcome import outcome, refused
from utils.datasets.annotations import read_annotations
from utils.datasets.simulate import make_demo
from utils.tools import convert
from utils.tools.demo import main


def test_it_makes_the_demo_and_says_that_it_is_simulated(tmp_path):
    done = outcome(main, ["--out", tmp_path / "Demo", "--width", 2])
    assert done.status == 0 and "SIMULATED" in done.out, done.log
    assert len(read_annotations(tmp_path / "Demo" / "Demo-Annotations")[0].videos) == 150
    assert not refused(outcome(main, ["--out", tmp_path / "Demo"]), "exists already").count("Traceback")


@pytest.mark.parametrize("wrong", [("--width", "0"), ("--proposals", "5"), ("--seed", "-1")])
def test_what_cannot_be_is_refused(tmp_path, wrong):
    refused(outcome(main, ["--out", tmp_path / "other", *wrong]), wrong[0])
    assert not list(tmp_path.iterdir())


def test_the_printed_command_trains(tmp_path, capsys):
    from main import main as train

    make_demo(tmp_path / "made", videos=(24, 6), width=2)
    json = tmp_path / "some.v1-2.json"
    convert.main(
        ["annotations", str(tmp_path / "made" / "Demo-Annotations"), "--to", "activitynet", "--out", str(json)]
    )
    json.write_text(
        json.read_text().replace('"test"', '"B"').replace("validation", "training").replace("B", "validation")
    )
    how = ("--annotations", json, "--out", tmp_path / "my data" / "ActivityNet1.2", "--width", 4)
    made = outcome(main, [*how, "--proposals", 9])
    assert made.status == 0, made.log
    line = shlex.split(made.out.splitlines()[-1])
    own = [f"--{name}={tmp_path / name}" for name in ("exp_dir", "cache_dir", "descriptors_root")]
    assert line[:2] == ["python", "main.py"]
    assert not train(line[2:] + own + ["--max_epoch", "1", "--device", "cpu"])
    assert "SIMULATED" in capsys.readouterr().out


def test_where_proposals_are_needed_first_it_says_which(tmp_path):
    make_demo(tmp_path / "made", videos=(4, 3), width=2)
    source = shutil.copytree(tmp_path / "made" / "Demo-Annotations", tmp_path / "Own-Annotations")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("{}")
    made = outcome(main, ["--annotations", source, "--out", tmp_path / "out", "--width", 2])
    assert made.status == 0 and "Proposals_Own_{train,test}.json in proposals4Own" in made.out, made.log
