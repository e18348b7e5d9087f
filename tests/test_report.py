"""What a run says: the table with its protocol, mean and standard deviation, numbers that do not exist."""

from __future__ import annotations

import json

import numpy as np
import pytest

from utils.datasets.profile import ACTIVITYNET_TIOU, THUMOS_TIOU
from utils.errors import some
from utils.run.report import REPORTED, aligned, headline, row, spread, table, tags

SPANS = ("0.1:0.5", "0.3:0.7", "0.1:0.7")


def metrics(first=0.7, tiou=THUMOS_TIOU, spans=SPANS, **more) -> dict:
    """Metrics of one evaluation whose mAP falls from ``first`` by 0.1 a threshold."""
    mean_ap = [first - 0.1 * i for i in range(len(tiou))]
    average = {span: first - 0.2 - 0.1 * i for i, span in enumerate(spans)}
    head = {"tiou": list(tiou), "mAP": mean_ap, "average": average, "protocol": "wtal", "videos": 212, "epoch": 40}
    video = {"classification_mAP": 0.9, "classification_accuracy": 0.8, "classification_top1": 0.85}
    return {**head, **video, **more}


def test_a_number_that_does_not_exist_is_a_dash_no_tag_and_never_the_best():
    empty = metrics(mAP=[None] * 7, average=dict.fromkeys(SPANS), classification_mAP=None)
    assert row(empty)[1:] == ["-"] * 11 + ["80.00"]
    assert list(tags(empty)) == ["test_mAP/Classification acc", "test_mAP/Classification top-1"]
    assert headline(empty) == -1 < headline(metrics()) == pytest.approx(0.3)


def test_mean_and_deviation_over_seeds_are_those_of_the_sample():
    seeds = [metrics(first) for first in (0.70, 0.74, 0.75)]
    found, values = spread(seeds), np.array([m["mAP"] for m in seeds])
    np.testing.assert_allclose(found["mean"]["mAP"], values.mean(0))
    np.testing.assert_allclose(found["std"]["mAP"], values.std(0, ddof=1))
    assert found["std"]["average"]["0.1:0.7"] == pytest.approx(values[:, 0].std(ddof=1))
    assert found["mean"]["classification_top1"] == pytest.approx(0.85)
    assert found["mean"]["protocol"] == "wtal" and found["mean"]["tiou"] == list(THUMOS_TIOU)
    alone = spread(seeds[:1])
    assert alone["mean"]["mAP"] == seeds[0]["mAP"] and alone["std"]["mAP"] == [None] * 7
    json.dumps(spread([metrics(classification_mAP=None)] * 2), allow_nan=False)


def test_the_table_names_protocol_and_videos_and_shows_last_beside_best():
    text = table("GTEA", "paper", {"last (epoch 40)": metrics(), "best (epoch 30)": metrics(0.8)})
    title, rule, head, _, last, best, end = text.splitlines()
    assert title == "GTEA, protocol wtal, 212 videos" and set(rule) == {"-"} and rule == end
    assert last.startswith("last (epoch 40)") and best.startswith("best (epoch 30)")
    assert len(head) == len(last) == len(best) == len(rule) and "SEAL" not in text


@pytest.mark.parametrize("recipe, rows", [("paper", ["52.80"]), ("release", ["52.80", "55.20"])])
def test_published_rows_stand_where_they_can_be_compared_with_what_they_rest_on(recipe, rows):
    text = table("Thumos14reduced", recipe, {"last": metrics()})
    published = [line for line in text.splitlines() if line.startswith("SEAL")]
    assert [line.split()[-3] for line in published] == rows and all("wtal" in line for line in published)
    assert "point labels" in text and ("53.4" in text) == (recipe == "release")
    assert "SEAL" not in table("Thumos14reduced", recipe, {"last": metrics(simulated=True)})
    assert "SEAL" not in table("Thumos14reduced", recipe, {"last": metrics(tiou=ACTIVITYNET_TIOU)})


def test_simulated_features_and_emptied_instances_are_said():
    cost = {"instances": 3358, "emptied": 12, "perfect": {"0.1:0.5": 1.0, "0.1:0.7": 0.981}}
    text = table("Demo", "paper", {"last": metrics(simulated=True, rounding=cost)})
    assert "SIMULATED" in text.splitlines()[0]
    assert text.endswith("empties 12 of 3,358 instances; a perfect detector would score 98.10 (avg 0.1:0.7)")
    assert "rounding" not in table("Demo", "paper", {"last": metrics()})


def test_reported_averages_follow_from_the_reported_thresholds():
    for _, numbers in REPORTED.values():
        for average, part in zip(numbers[7:], (slice(0, 5), slice(2, 7), slice(0, 7))):
            assert np.mean(numbers[part]) == pytest.approx(average, abs=0.06)


def test_lines_are_aligned_and_names_shortened():
    assert aligned([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc   d"]
    assert some(["a", "b"]) == "a, b" and some(list("abcdefg"), 2) == "a, b and 5 more"
    assert some(["\x1b[31m"]) == "\\x1b[31m"
