"""A tiny dataset on disk in any of the layouts, for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

ANNOTATIONS, FEATURES = "Tiny-Annotations", "Tiny-I3D-JOINTFeatures"
TRAIN, TEST, PROFILE = "Proposals_Tiny_train.json", "Proposals_Tiny_test.json", "dataset.json"
FEATURE, CLASSES, VIDEOS = f"{FEATURES}/video_01.npy", f"{ANNOTATIONS}/classlist.npy", f"{ANNOTATIONS}/videoname.npy"
WEAK, SEGMENTS, DURATION = (f"{ANNOTATIONS}/{name}.npy" for name in ("labels_all", "segments", "duration"))


def objects(values) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def write(
    root: Path, name="Tiny", videos=8, classes=("jump", "throw"), width=8, seed=0, proposals=9, snippets=30
) -> Path:
    """Two thirds training, one third test; folder features, npy annotations, proposals and a profile. Returns root."""
    rng = np.random.default_rng(seed)
    names = [f"video_{i:02d}" for i in range(videos)]
    train = [i < 2 * videos // 3 for i in range(videos)]
    folder, features = root / f"{name}-Annotations", root / f"{name}-I3D-JOINTFeatures"
    folder.mkdir(parents=True)
    features.mkdir()
    length = rng.integers(snippets // 2, snippets, videos)
    seconds = length * 16 / 25
    label = [classes[i % len(classes)] for i in range(videos)]
    np.save(folder / "classlist.npy", np.asarray(classes))
    np.save(folder / "videoname.npy", np.asarray(names))
    np.save(folder / "subset.npy", np.asarray(["validation" if t else "test" for t in train]))
    np.save(folder / "duration.npy", seconds)
    np.save(folder / "labels_all.npy", objects([[c] for c in label]))
    np.save(folder / "labels.npy", objects([[c, c] for c in label]))
    np.save(folder / "segments.npy", objects([[[0.1 * s, 0.3 * s], [0.5 * s, 0.8 * s]] for s in seconds]))
    found = {"train": {}, "test": {}}
    for i, video in enumerate(names):
        np.save(features / f"{video}.npy", rng.random((length[i], width), dtype=np.float32) + (i % len(classes)))
        pairs = np.sort(rng.uniform(0, seconds[i], (proposals, 2)), axis=1)
        pairs[-1] = pairs[0]
        found["train" if train[i] else "test"][video] = [{"segment": [round(float(x), 4) for x in p]} for p in pairs]
    for split, results in found.items():
        (root / f"Proposals_{name}_{split}.json").write_text(json.dumps({"results": results}))
    (root / "dataset.json").write_text(json.dumps({"proposals_root": "."}))
    return root
