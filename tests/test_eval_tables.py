"""Tables of runs: which cells run, which do not, and how seeds are paired."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval import comparison, tables
from eval.comparison import Row, Table, as_cells, long_form, shown_columns, summarise, t_interval
from eval.inference import left_out
from losses import TERMS
from options import parse
from tests.outcome import outcome, refused
from tests.runs import without_test_videos

ROOT = Path(__file__).resolve().parent.parent
TIOU, SPANS = (0.1, 0.3, 0.5, 0.7), ("0.1:0.5", "0.1:0.7")


# ---- numbers


@pytest.mark.parametrize("n, quantile", [(2, 12.7062), (3, 4.3027), (5, 2.7764), (11, 2.2281), (101, 1.9840)])
def test_half_the_interval_is_students_quantile_times_the_standard_error(n, quantile):
    values = np.random.default_rng(n).normal(size=n)
    assert t_interval(values) == pytest.approx(quantile * values.std(ddof=1) / np.sqrt(n), rel=1e-4)


def test_one_difference_has_no_interval():
    assert np.isnan(t_interval(np.ones(1))) and np.isnan(t_interval(np.zeros(0)))


def metrics(average, tious=TIOU, spans=SPANS, **more):
    mean = {"average": {span: average for span in spans}, "mAP": [average] * len(tious)}
    return {"epoch": 4, "tiou": list(tious), "classification_mAP": None, "protocol": "wtal", **mean, **more}


def results(**rows):
    return {(row, seed): {"last": metrics(value), "best": metrics(value + 0.1)}
            for row, values in rows.items() for seed, value in values.items()}  # fmt: skip


PAIR = Table("3", "toy", (Row("a", "base", ()), Row("b", "more", (), "a", (4.0, 3.0, 2.0, 1.0))))


def test_differences_are_paired_by_seed_and_a_star_needs_an_interval_without_0():
    base, more = {0: 0.10, 1: 0.30, 2: 0.20, 7: 0.9}, {2: 0.22, 0: 0.12, 1: 0.33}
    frame = long_form([PAIR], results(a=base, b=more))
    first, second = summarise(PAIR, frame)
    gains = np.asarray([2.0, 3.0, 2.0])
    assert np.isnan(first.difference) and (first.n, second.n) == (4, 3)
    assert second.difference == pytest.approx(gains.mean()) and second.half == pytest.approx(t_interval(gains))
    assert second.mean["AVG(0.1:0.7)"] == pytest.approx(100 * np.mean([0.12, 0.33, 0.22]))
    assert second.sd["AVG(0.1:0.7)"] == pytest.approx(100 * np.std([0.12, 0.33, 0.22], ddof=1))
    head, _, line = as_cells(PAIR, frame)
    shown = dict(zip(head, line))
    assert shown["difference"] == "+2.3*" and shown["to"] == "base" and shown["paper 0.5"] == "3.0"
    wide = as_cells(PAIR, long_form([PAIR], results(a=base, b={0: 0.12, 1: 0.22})))[2]
    assert "-3.0" in wide and not any("*" in cell for cell in wide)
    assert as_cells(PAIR, long_form([PAIR], results(a={0: 0.1}, b={0: 0.2})))[2][5:7] == ["+10.0", "-"]


def test_last_is_shown_and_best_is_in_the_csv(tmp_path):
    found = results(a={0: 0.2, 1: 0.3}, b={0: 0.3})
    text = comparison.write(tmp_path, [PAIR], found, "a $title_ <", grey=True)
    frame = pd.read_csv(tmp_path / "tables.csv")
    assert list(zip(frame.row, frame.seed, frame.model)) == [
        (row, seed, model) for row, seed in (("a", 0), ("a", 1), ("b", 0)) for model in ("last", "best")
    ]
    assert frame["mAP@0.5"].tolist() == pytest.approx([20, 30, 30, 40, 30, 40])
    assert "25.0 +- 7.1" in text and "35.0" not in text and "THUMOS14" in text
    assert "<sub>1.0</sub>" in (tmp_path / "tables.md").read_text() and (tmp_path / "tables.png").stat().st_size > 5000


def test_other_thresholds_show_those_of_activitynet():
    tious = np.linspace(0.5, 0.95, 10)
    found = {("a", 0): {k: metrics(0.3, tious, ["0.5:0.95"]) for k in ("last", "best")}}
    assert shown_columns(long_form([PAIR], found)) == ["mAP@0.5", "mAP@0.75", "mAP@0.95", "AVG(0.5:0.95)"]


@pytest.mark.parametrize("losses, option, out", [
    ("none", "trained", {"s_pc"}), ("none", "always", set()), ("pc", "trained", set()), ("pc", "never", {"s_pc"}),
])  # fmt: skip
def test_s_pc_is_in_the_score_where_it_was_trained_or_as_asked(losses, option, out):
    assert left_out(parse(["--losses", losses, "--score_s_pc", option], tuple(TERMS))) == out


# ---- cells


def command(sound, place, *more):
    return ["--table", "3", "--dataset_name", "Tiny", "--dataset_root", sound.root, "--out", place / "out",
            "--rows", "none-with-s_pc", "--seeds", "3", "--max_epoch", "1", "--cache_dir", place / "cache",
            "--batch_size", "3", "--descriptors_root", place / "descriptors", "--device", "cpu", *more]  # fmt: skip


@pytest.fixture(scope="module")
def made(sound, tmp_path_factory):
    """A table of two cells, and how the command ended."""
    place = tmp_path_factory.mktemp("tables")
    return place, outcome(tables.main, command(sound, place))


@pytest.fixture
def counted(monkeypatch):
    """The cells that are run from here on; each takes no time, and leaves nothing."""
    ran = []

    def run_cell(command, folder, log_file, threads):
        ran.append("/".join(Path(log_file).parts[-3:-1]))
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        Path(log_file).write_text("a line\nerror: no luck\n")
        return 2, "error: no luck"

    monkeypatch.setattr(tables, "run_cell", run_cell)
    return ran


def test_every_cell_is_an_ordinary_run(made):
    place, found = made
    assert found.status == 0 and "2 cells in" in found.log and "control: base, s_pc in the score" in found.out
    for row, score in (("none", "trained"), ("none-with-s_pc", "always")):
        options = json.loads((place / "out" / row / "seed3" / "options.json").read_text())
        assert (options["score_s_pc"], options["seed"], options["losses"]) == (score, 3, [])
    weights = [place / "out" / row / "seed3/ckpt/last_model.pkl" for row in ("none", "none-with-s_pc")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    frame = pd.read_csv(place / "out" / "tables.csv")
    best = json.loads((place / "out" / "none" / "seed3" / "results.json").read_text())["best"]
    row = frame[(frame.row == "none") & (frame.model == "best")].iloc[0]
    assert row["mAP@0.1"] == pytest.approx(100 * best["mAP"][0], abs=1e-4) and row["epoch"] == best["epoch"]


def test_finished_cells_are_not_run_again_and_copied_ones_count(sound, made, tmp_path, counted):
    place, first = made
    again = outcome(tables.main, command(sound, place))
    assert (again.status, again.out, counted) == (0, first.out, [])
    shutil.copytree(place / "out" / "none", tmp_path / "out" / "none")
    elsewhere = outcome(tables.main, command(sound, tmp_path))
    refused(elsewhere, "1 of 2 cells failed", "no luck", "console.log")
    assert counted == ["none-with-s_pc/seed3"] and "base" in elsewhere.out


def test_a_cell_that_was_killed_goes_on(sound, made, tmp_path, counted):
    shutil.copytree(made[0] / "out", tmp_path / "out")
    (tmp_path / "out" / "none" / "seed3" / "results.json").unlink()
    assert outcome(tables.main, command(sound, tmp_path)).status == 2 and counted == ["none/seed3"]


@pytest.mark.parametrize("more", [["--gamma", "0.5"], ["--batch_size", "2"], ["--protocol", "wtal"]])
def test_cells_made_with_other_options_are_refused(sound, made, more, counted):
    refused(outcome(tables.main, command(sound, made[0], *more)), more[0][2:], "none/seed3", "name another --out")
    assert not counted


def test_cells_made_from_other_inputs_are_refused(sound, made, tmp_path, counted):
    root = shutil.copytree(sound.root, tmp_path / "data")
    path = root / "Proposals_Tiny_test.json"
    path.write_text(path.read_text() + " ")
    more = ["--dataset_root", root]
    refused(outcome(tables.main, command(sound, made[0], *more)), "test_proposals", "none/seed3", "name another --out")
    assert not counted


def test_cells_made_with_other_descriptors_are_refused(sound, made, tmp_path, counted):
    place = shutil.copytree(made[0], tmp_path / "place")
    for path in (place / "descriptors").glob("*.npy"):
        np.save(path, np.load(path)[::-1])
    (place / "descriptors" / "made_from.json").unlink()
    refused(outcome(tables.main, command(sound, place)), "pseudo_labels", "none/seed3", "name another --out")
    assert not counted


def test_an_option_that_came_after_a_cell_had_its_default(sound, made, tmp_path, counted):
    place = shutil.copytree(made[0], tmp_path / "place")
    for path in place.glob("out/*/seed3/options.json"):
        options = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in options.items() if k not in ("score_s_pc", "format")}))
    says = ("score_s_pc was trained and is always", "none-with-s_pc/seed3")
    refused(outcome(tables.main, command(sound, place)), *says)
    assert not counted


@pytest.mark.parametrize("more, says", [
    (["--losses", "pc"], "--losses is what the rows"), (["--seed=3"], "--seed is what"), (["--gama", "3"], "--gama"),
    (["--rows", "nothing"], "nothing is none of none, sme"), (["--table", "7"], "7"),
    (["--table", "6", "--proposals", "P w=x"], "NAME=DIR"), (["--proposals", "a=x", "a=y"], "each name once"),
    (["--dask", "tcp://127.0.0.1:1", "--seeds", "4"], "requirements-cluster.txt"),
])  # fmt: skip
def test_a_wrong_command_is_one_line(sound, tmp_path, monkeypatch, more, says):
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(outcome(tables.main, command(sound, tmp_path, *more)), says)


def test_without_test_videos_there_is_nothing_to_compare(sound, tmp_path):
    root = without_test_videos(sound.root, tmp_path / "data")
    refused(outcome(tables.main, command(sound, tmp_path, "--dataset_root", root)), "no test videos")


def test_table_6_shares_the_cells_of_the_runs_own_proposals():
    table = tables.table_6({"P_w": "here", "other": "there"}, "here")
    assert [row.name for row in table.rows] == ["none", "sme+pc+sc", "none-other", "sme+pc+sc-other"]
    assert [row.against for row in table.rows] == [None, "none", None, "none-other"]
    assert table.rows[0].paper[-1] == 39.7 and table.rows[2].paper is None


def test_cells_run_on_a_dask_cluster(sound, tmp_path):
    """Whose workers find nothing of this program but the files."""
    distributed = pytest.importorskip("distributed", reason="requirements-cluster.txt is not installed")
    with distributed.LocalCluster(1, threads_per_worker=2, dashboard_address=None) as cluster:
        words = [
            sys.executable,
            ROOT / "eval" / "tables.py",
            *command(sound, tmp_path, "--dask", cluster.scheduler_address),
        ]
        found = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert found.returncode == 0 and "2 of 2 cells" in found.stderr, found.stderr
    assert len(list(tmp_path.glob("out/*/seed3/ckpt/last_model.pkl"))) == 2
