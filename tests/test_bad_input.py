"""One thing wrong with the input, through the real commands: one row a kind of fault.

Each row ends in the right result or in one line that names the file, with exit status 2; never in a traceback.
What readers make of single files has its own tests (test_files_*, test_annotations, test_features, test_proposals).
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests import changes, tiny
from tests.changes import (
    all_of,
    array,
    case,
    cut,
    document,
    ends_well,
    every_feature,
    joint,
    remove,
    setting,
    train,
    write,
)
from tests.outcome import outcome, read_scalars, refused
from tests.tiny import CLASSES, DURATION, FEATURE, FEATURES, SEGMENTS, TEST, TRAIN, VIDEOS, WEAK
from utils.files import load_checkpoint

pytestmark = pytest.mark.usefixtures("hurried")

# ---- the dataset


def everywhere(how):
    """Change every proposal through a function of its index, start and end."""

    def change(d):
        for entries in d["results"].values():
            entries[:] = [{"segment": how(i, *entry["segment"])} for i, entry in enumerate(entries)]

    return all_of(document(TRAIN, change), document(TEST, change))


def third(*times):
    return document(TRAIN, lambda d: d["results"]["video_00"].__setitem__(2, {"segment": list(times)}))


def renamed(name, in_one_array=False):
    """The first test video under another name, wherever it is named."""

    def change(root):
        if in_one_array:
            joint(root)
        elif "/" not in name:
            (root / FEATURES / "video_04.npy").rename(root / FEATURES / f"{name}.npy")
        array(VIDEOS, lambda a: tiny.objects([name if v == "video_04" else v for v in a.tolist()]))(root)
        document(TEST, lambda d: d["results"].update({name: d["results"].pop("video_04")}))(root)

    return change


ONE_SNIPPET = all_of(every_feature(lambda f: f[:1]), array(DURATION, lambda d: d * 0 + 0.64),
                     array(SEGMENTS, lambda a: tiny.objects([[[0.0, 0.3], [0.2, 0.6]] for _ in a])),
                     everywhere(lambda i, s, e: [0.0, 0.6]))  # fmt: skip
PAPER = ["--recipe", "paper", "--cache_dtype", "float16"]
DATA = [
    case("a file missing", remove(CLASSES), CLASSES, "no such file", "README"),
    case("empty", write(VIDEOS, b""), VIDEOS),
    case("another kind of file", write(TRAIN, "<html>404</html>"), TRAIN),
    case("cut short", cut(SEGMENTS), SEGMENTS),
    case("one label short", array(WEAK, lambda a: a[:-1]), WEAK, "5 labels_all for 6 videos"),
    case("proposals elsewhere", setting(proposals_root="nowhere"), "nowhere", "no such file"),
    case("a name with NUL", setting(annotations="a\0b"), r"a\x00b"),
    case("features of another type and order", array(FEATURE, lambda a: np.asfortranarray(a, ">f8")), same=True),
    case("features transposed", every_feature(lambda f: f.T.copy()), same=True),
    case("features in one array", joint, same=True),
    case("no features of a video", remove(FEATURE), log=["3 of 4 train videos have features; missing: video_01"]),
    case("features of another rate", array(DURATION, lambda a: a * 3), "do not fit the rate", "--ignore_rate goes on"),
    case("features of another rate, ignored", array(DURATION, lambda a: a * 3), more=["--ignore_rate"],
         log=["4 of 4 train videos have features of another length than their duration", "2 of 2 test"]),
    case("a bad proposal", third(2, 1), TRAIN, "video_00", "index 2", "--fix_proposals"),
    case("bad proposals, fixed", all_of(everywhere(lambda i, s, e: [s, e + 99 * (i == 1)]), third(math.nan, 2)),
         log=["1 proposals were dropped", "4 proposals were clipped"], more=["--fix_proposals"]),
    case("no proposal", document(TRAIN, lambda d: {"results": {}}), TRAIN, "none of the 4 train videos"),
    case("no proposal in a video", document(TEST, lambda d: d["results"].pop("video_05")), log=["1 of 2", "video_05"]),
    case("proposals of others", document(TRAIN, lambda d: d["results"].update(x=[])), log=["not in the"], same=True),
    # names of videos stay names: none leads out of its folder, breaks a line, or stops a run
    *[case(f"name {n!a:.20}", renamed(n)) for n in ("vidéo 漢字 🎬", "a" * 230, "-rf %s{}")],
    *[case(f"name {n!a:.20}", renamed(n), log=["1 of 2 test videos have"]) for n in ("../../escaped", "/etc/escaped")],
    *[case(f"name in one array {n!a:.20}", renamed(n, True)) for n in ("../../escaped", "n" * 5000, "a\nb\x1b[2J")],
    # numbers at their limits stay finite through the whole path
    case("features of zero", every_feature(np.zeros_like), more=PAPER),
    case("features of -1e4", every_feature(lambda f: f * -1e4), more=PAPER),
    case("features of 1e5", every_feature(lambda f: f * 1e5), "large for float16 (video_00)", more=PAPER),
    case("features of 1e30", every_feature(lambda f: f * np.float32(1e30)), "is", "epoch 1", "lower --lr"),
    case("a single snippet", ONE_SNIPPET, more=["--feature_size", 8]),
    case("identical proposals", everywhere(lambda i, s, e: [1.0, 3.0])),
    case("proposals that round to no length", everywhere(lambda i, s, e: [s, s + 1e-4]), more=PAPER),
]  # fmt: skip


@pytest.mark.parametrize("change, more, end", DATA)
def test_data_of_every_kind(sound, tmp_path, change, more, end):
    place = tmp_path / "one" / "two"
    root = Path(shutil.copytree(sound.root, place / "tiny"))
    change(root)
    ends_well(train(root, place, *more), sound, place, **end)
    assert not list(tmp_path.rglob("*escaped*")) and [p.name for p in tmp_path.iterdir()] == ["one"]
    if not end["words"]:
        scalars = read_scalars(place / "run" / "logs")
        assert len(scalars) > 15 and all(np.isfinite(list(values.values())).all() for values in scalars.values())


# ---- what a run left

CHECKPOINT, STATE = "ckpt/best_model.pkl", "ckpt/last_state.pt"
FUSION, STRANGE = "prop_fused_backbone.prop_fusion.0.weight", "not the state of"


def saved(path, how):
    """Change what torch.save wrote: ``how`` takes the dict and changes it, or returns another."""

    def change(folder):
        value = load_checkpoint(folder / path)
        made = how(value)
        torch.save(made if isinstance(made, dict) else value, folder / path)

    return change


def weights(how):
    return saved(CHECKPOINT, lambda s: s.update({k: how(v) for k, v in s.items()}))


def info(how):
    return saved(CHECKPOINT, lambda s: how(s._metadata["seal"]))


CHECKPOINTS = [
    case("missing", remove(CHECKPOINT), CHECKPOINT, "no such file", "README"),
    case("cut short", cut(CHECKPOINT), CHECKPOINT),
    case("another kind of file", write(CHECKPOINT, "<html>404</html>"), CHECKPOINT),
    case("the state of a run", lambda run: (run / STATE).replace(run / CHECKPOINT), CHECKPOINT, "last_model.pkl"),
    case("linear weights, float64", weights(lambda w: (w[..., 0] if w.ndim == 3 else w).double()), same=True),
    case("bfloat16", weights(lambda w: w.bfloat16())),
    case("weights that overflow", weights(lambda w: w * 1e25), "not finite", "video"),
    case("complex", weights(lambda w: w + 1j), CHECKPOINT, "complex"),
    case("options of no kind", info(lambda d: d["options"].update(gamma="x")), CHECKPOINT),
]
STATES = [
    case("cut short", cut(STATE), STATE),
    case("a model", lambda run: (run / CHECKPOINT).replace(run / STATE), STATE, STRANGE),
    case("a part missing", saved(STATE, lambda s: s.pop("epoch")), STATE, STRANGE),
    case("a part of another kind", saved(STATE, lambda s: s.update(history="text")), STATE, STRANGE),
    case("another shape", saved(STATE, lambda s: s["model"].update({FUSION: torch.zeros(2, 2)})), STATE, STRANGE),
    case("an optimizer of nothing", saved(STATE, lambda s: s.update(optimizer={})), STATE, STRANGE),
    case("an epoch beyond the last", saved(STATE, lambda s: s.update(epoch=99)), STATE, STRANGE),
]


@pytest.mark.parametrize("change, more, end", CHECKPOINTS)
def test_checkpoints_of_every_kind(sound, tmp_path, change, more, end):
    kept = Path(shutil.copytree(sound.place / "run", tmp_path / "kept"))
    change(kept)
    words = changes.arguments(sound.root, tmp_path, "--run_type", "test", "--pretrained_ckpt", kept / CHECKPOINT)
    ends_well(outcome(main.main, words), sound, tmp_path, **end)


@pytest.mark.parametrize("change, more, end", STATES)
def test_a_damaged_state_is_not_resumed(sound, tmp_path, change, more, end):
    change(Path(shutil.copytree(sound.place / "run", tmp_path / "run")))
    refused(train(sound.root, tmp_path, "--resume", descriptors_root=sound.place / "descriptors"), *end["words"])


def test_one_class_one_video_and_one_proposal_train_but_not_in_a_folder_of_no_unicode(tmp_path):
    root = tiny.write(tmp_path / "tiny", videos=2, classes=("jump",), proposals=1)
    assert train(root, tmp_path, batch_size=10).status == 0 and changes.results(tmp_path)
    refused(train(root, tmp_path, exp_dir=os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), "UTF-8", "caf")
