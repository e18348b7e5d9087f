"""Checkpoints and descriptors that are wrong in some way, through the real commands; and odd sizes of a dataset.

Each case ends in the right result or in one line that names the file, with exit status 2; never in a traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests import tiny
from tests.changes import (
    ANNOTATIONS,
    TRAIN,
    arguments,
    case,
    cut,
    document,
    folder,
    remove,
    results,
    train,
    write,
)
from tests.outcome import outcome, refused
from utils import files

ROOT = Path(main.__file__).parent
CHECKPOINT, STATE = "best_model.pkl", "last_state.pt"
NET = "prop_fused_backbone."


pytestmark = pytest.mark.usefixtures("hurried")


def without(mapping, key):
    del mapping[key]


def tensors(how, keep=True):
    """Change the weights of a checkpoint: ``how`` takes the state_dict and changes it or returns another value."""

    def change(folder):
        state = files.load_checkpoint(folder / CHECKPOINT)
        made = how(state)
        made = state if made is None else made
        if not keep:
            made = dict(made)
        torch.save(made, folder / CHECKPOINT)

    return change


def weight(name, how):
    def change(state):
        state[NET + name] = how(state[NET + name])

    return tensors(change)


def info(**values):
    return tensors(lambda state: state._metadata["seal"].update(values))


def legacy(folder):
    state = files.load_checkpoint(folder / CHECKPOINT)
    torch.save(state, folder / CHECKPOINT, _use_new_zipfile_serialization=False)


FUSION, CLASSES = "prop_fusion.0.weight", "prop_classifier.2.weight"
CHECKPOINTS = [
    *[case(f"cut {n}", cut(CHECKPOINT, n), CHECKPOINT) for n in range(5)],
    case("as it is", lambda folder: None, same=True),
    case("missing", remove(CHECKPOINT), CHECKPOINT, "no such file", "README"),
    case("empty", write(CHECKPOINT, b""), CHECKPOINT),
    case("zeros", write(CHECKPOINT, b"\0" * 1000), CHECKPOINT),
    case("a web page", write(CHECKPOINT, "<html>404</html>"), CHECKPOINT),
    case("a folder", folder(CHECKPOINT), CHECKPOINT),
    case("bare", tensors(OrderedDict, keep=False), same=True),
    case("in torch's old form", legacy, same=True),
    case("linear weights", tensors(lambda s: s.update({k: v[..., 0] for k, v in s.items() if v.ndim == 3})), same=True),
    case("a list", lambda folder: torch.save([1, 2], folder / CHECKPOINT), CHECKPOINT),
    case("no tensor", tensors(lambda s: {"a": 1}), CHECKPOINT, "not a state_dict"),
    case("nothing", tensors(lambda s: {}), CHECKPOINT, "no parameter"),
    case("the state of a run", lambda folder: (folder / STATE).replace(folder / CHECKPOINT), CHECKPOINT),
    case("a parameter missing", tensors(lambda s: without(s, NET + "prop_attention.0.bias")),
         CHECKPOINT, "attention"),
    case("a parameter more", tensors(lambda s: s.update(extra=torch.zeros(2))), CHECKPOINT, "extra"),
    case("a parameter of another shape", weight("prop_attention.0.bias", lambda w: w[:-1]),
         CHECKPOINT, "attention.0.bias"),
    case("a fusion layer of another shape", weight(FUSION, lambda w: w[:, :-1]), CHECKPOINT),
    case("a fusion layer without rows", weight(FUSION, lambda w: w[:0]), CHECKPOINT),
    case("a number for the fusion layer", weight(FUSION, lambda w: w.sum()), CHECKPOINT),
    case("no class", weight(CLASSES, lambda w: w[:1]), CHECKPOINT),
    case("NaN", weight(FUSION, lambda w: w * float("nan")), CHECKPOINT, "NaN or Inf"),
    case("Inf", weight(FUSION, lambda w: w / 0), CHECKPOINT, "NaN or Inf"),
    case("weights that overflow", tensors(lambda s: s.update({k: v * 1e25 for k, v in s.items()})), "not finite"),
    case("float64", tensors(lambda s: s.update({k: v.double() for k, v in s.items()})), same=True),
    case("bfloat16", tensors(lambda s: s.update({k: v.bfloat16() for k, v in s.items()}))),
    case("whole numbers", weight(FUSION, lambda w: w.long())),
    case("true or false", weight(FUSION, lambda w: w > 0)),
    case("complex", weight(FUSION, lambda w: w + 1j), CHECKPOINT),
    case("sparse", weight(FUSION, lambda w: w.to_sparse()), CHECKPOINT),
    case("other classes", info(classes=["hop", "throw"]), CHECKPOINT, "other classes"),
    case("classes in another order", info(classes=["throw", "jump"]), CHECKPOINT, "other classes"),
    case("a number for classes", info(classes=3), CHECKPOINT),
    case("info that is no number", info(roi_size="12"), CHECKPOINT),
    case("info of no size", info(roi_size=0), CHECKPOINT),
    case("info of no rate", info(feature_fps=-1), CHECKPOINT),
    case("losses that are a number", info(losses=5), CHECKPOINT),
    case("losses nobody knows", info(losses=["x"]), CHECKPOINT, "losses"),
    case("a tensor for a class", info(classes=[torch.ones(2), "jump"]), CHECKPOINT, "classes"),
    case("bins that fill the memory", info(roi_size=6 * 10**8), CHECKPOINT, "roi_size"),
    case("a rate that makes every time 0", info(feature_fps=1e-300), CHECKPOINT, "feature_fps"),
    case("a width of other weights", info(feature_size=12), CHECKPOINT, "feature_size"),
    case("the width of the weights", info(feature_size=8), same=True),
    case("a billion classes without a weight", weight(CLASSES, lambda w: torch.zeros(10**9, 0)), CHECKPOINT, "10000"),
]  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints_of_every_kind(sound, tmp_path, case):
    place = tmp_path / "ckpt"
    place.mkdir()
    for name in (CHECKPOINT, STATE):
        (place / name).write_bytes((sound.place / "run" / "ckpt" / name).read_bytes())
    case.change(place)
    words = arguments(sound.root, tmp_path)
    found = outcome(main.main, [*words, "--run_type", "test", "--pretrained_ckpt", place / CHECKPOINT])
    if case.words:
        refused(found, *case.words)
        assert not (tmp_path / "run" / "results.json").exists()
    else:
        assert found.status == 0, found.log
        after = results(tmp_path)
        assert not case.same or after == sound.results


@pytest.mark.parametrize("change", ["classes", "features"])
def test_a_checkpoint_of_other_data_is_refused(sound, tmp_path, change):
    how = {"classes": ("a", "b", "c")} if change == "classes" else {"width": 12}
    root = tiny.write(tmp_path / "other", videos=9, **how)
    checkpoint = sound.place / "run" / "ckpt" / CHECKPOINT
    found = outcome(main.main, [*arguments(root, tmp_path), "--run_type", "test", "--pretrained_ckpt", checkpoint])
    refused(found, CHECKPOINT, "classes" if change == "classes" else "width 8")


def state(how):
    def change(folder):
        found = files.load_checkpoint(folder / STATE)
        made = how(found)
        torch.save(found if made is None else made, folder / STATE)

    return change


STATES = [
    *[case(f"cut {n}", cut(STATE, n), STATE) for n in range(3)],
    case("empty", write(STATE, b""), STATE),
    case("a model", lambda folder: (folder / CHECKPOINT).replace(folder / STATE), STATE, "not the state of a run"),
    *[case(f"without {key}", state(lambda s, key=key: without(s, key)), STATE) for key in (
        "model", "optimizer", "options", "inputs", "history", "epoch", "records", "term_names")],
    *[case(f"{key} of another kind", state(lambda s, key=key: s.update({key: "text"})), STATE) for key in (
        "model", "optimizer", "options", "inputs", "history", "epoch", "step", "records", "term_names")],
    case("another model", state(lambda s: without(s["model"], NET + FUSION)), STATE),
    case("a model of another shape", state(lambda s: s["model"].update({NET + FUSION: torch.zeros(2, 2)})), STATE),
    case("an optimizer of nothing", state(lambda s: s.update(optimizer={})), STATE),
    case("an epoch beyond the last", state(lambda s: s.update(epoch=99)), STATE),
    case("an epoch before the first", state(lambda s: s.update(epoch=-1)), STATE),
]  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_is_damaged_is_not_resumed(sound, tmp_path, case):
    place = tmp_path / "run" / "ckpt"
    place.mkdir(parents=True)
    for name in (CHECKPOINT, STATE):
        (place / name).write_bytes((sound.place / "run" / "ckpt" / name).read_bytes())
    case.change(place)
    found = train(sound.root, tmp_path, "--resume", "--descriptors_root", sound.place / "descriptors")
    assert "differ" not in refused(found, *case.words)


# ---- descriptors


def descriptor(how, name="motion"):
    return lambda folder: np.save(folder / f"general_{name}_descriptors.npy", how(np.zeros((2, 4), np.float32) + 1))


MOTION = "general_motion_descriptors.npy"
DESCRIPTORS = [
    *[case(f"cut {n}", cut(MOTION, n), MOTION) for n in range(3)],
    case("missing", remove(MOTION), same=True),
    case("empty", write(MOTION, b""), MOTION),
    case("text", write(MOTION, "descriptors"), MOTION),
    case("a folder", folder(MOTION), MOTION),
    case("of other classes", descriptor(lambda d: d[:1]), MOTION, "(1, 4)"),
    case("of another width", descriptor(lambda d: d[:, :3]), MOTION, "(2, 3)"),
    case("of rank 1", descriptor(lambda d: d.ravel()), MOTION, "(8,)"),
    case("NaN", descriptor(lambda d: d * np.nan), MOTION),
    case("Inf", descriptor(lambda d: d * np.inf), MOTION),
    case("whole numbers", descriptor(lambda d: d.astype(int)), MOTION),
    case("objects", descriptor(lambda d: d.astype(object)), MOTION),
    case("float64", descriptor(lambda d: d.astype(float))),
    case("zeros", descriptor(lambda d: d * 0)),
    case("huge", descriptor(lambda d: d * 1e38)),
    case("a note that is damaged", write("made_from.json", "{"), "made_from.json"),
    case("a note that says other things", write("made_from.json", "[]"), same=True),
]  # fmt: skip


@pytest.mark.parametrize("case", DESCRIPTORS)
def test_descriptors_of_every_kind(sound, tmp_path, case):
    place = tmp_path / "descriptors"
    place.mkdir()
    for path in (sound.place / "descriptors").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    case.change(place)
    found = train(sound.root, tmp_path)
    if case.words:
        refused(found, *case.words)
    else:
        assert found.status == 0, found.log
        after = results(tmp_path)
        assert not case.same or after == sound.results


# ---- sizes


def test_one_class_one_video_and_one_proposal_train(tmp_path):
    root = tiny.write(tmp_path / "tiny", videos=2, classes=("jump",), proposals=1)
    assert train(root, tmp_path, "--batch_size", 10, epochs=3).status == 0
    results(tmp_path)


def test_a_hundred_thousand_proposals_in_one_video_end_in_a_result(tmp_path):
    root = tiny.write(tmp_path / "tiny", videos=6)
    rng = np.random.default_rng(0)
    for split, video in (("train", "video_00"), ("test", "video_05")):
        many = np.sort(rng.uniform(0, 8, (100_000, 2)), axis=1) + (0, 0.01)
        entries = [{"segment": pair} for pair in many.round(3).tolist()]
        document(f"Proposals_Tiny_{split}.json", lambda d, v=video, e=entries: d["results"].update({v: e}))(root)
    found = train(root, tmp_path, "--recipe", "release")  # its centre term is over all pairs
    assert found.status == 0, found.log
    results(tmp_path)
    detections = json.loads((tmp_path / "run" / "detections.json").read_text())["results"]["video_05"]
    assert len(detections) >= 100_000


def test_a_video_of_twenty_thousand_snippets_ends_in_a_result(tmp_path):
    root = tiny.write(tmp_path / "tiny", videos=6, snippets=20_000, proposals=200)
    assert train(root, tmp_path).status == 0
    results(tmp_path)


def test_three_hundred_classes_train(tmp_path):
    root = tiny.write(tmp_path / "tiny", videos=450, classes=tuple(f"class {i}" for i in range(300)), proposals=2)
    assert train(root, tmp_path, "--batch_size", 100).status == 0
    results(tmp_path)


def test_a_folder_whose_name_is_no_unicode_holds_a_run(sound, tmp_path):
    exp_dir = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    found = train(sound.root, tmp_path, "--exp_dir", exp_dir)
    assert found.status == 0, found.log
    assert "caf\\udce9" in Path(exp_dir, "opt.txt").read_text() and Path(exp_dir, "results.json").exists()


# ---- as a command


@pytest.mark.parametrize(
    "change, words",
    [
        (remove(f"{ANNOTATIONS}/classlist.npy"), "classlist.npy"),
        (write(TRAIN, '{"results": '), TRAIN),
    ],
)
def test_the_command_itself_ends_in_one_line(sound, tmp_path, change, words):
    import shutil

    root = Path(shutil.copytree(sound.root, tmp_path / "tiny"))
    change(root)
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments(root, tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout and len(lines) == 1
    assert lines[0].startswith("error: ") and words in lines[0]
