"""Names of videos from the files stay names: none leads out of its folder, breaks a line, or stops a run."""

from __future__ import annotations

import numpy as np
import pytest

from tests import tiny
from tests.changes import FEATURES, TEST, VIDEOS, case, document, ends_well, joint

pytestmark = pytest.mark.usefixtures("hurried")


def rename(root, name, as_array=np.asarray):
    """Give the first test video another name in annotations and proposals; returns the old one."""
    videos = np.load(root / VIDEOS).tolist()
    old, videos[4] = videos[4], name
    np.save(root / VIDEOS, as_array(videos))
    document(TEST, lambda d: d["results"].update({name: d["results"].pop(old)}))(root)
    return old


def renamed(name):
    """The first test video under another name, in every file that names it."""

    def change(root):
        old = rename(root, name)
        try:
            assert "/" not in name
            (root / FEATURES / f"{old}.npy").rename(root / FEATURES / f"{name}.npy")
        except (AssertionError, OSError, ValueError):
            (root / FEATURES / f"{old}.npy").unlink()

    return change


NAMES = [
    *[
        case(f"in a folder: {name!a:.20}", renamed(name))
        for name in ("vidéo 漢字 🎬", "a" * 230, "-rf", "a b", "x" * 200, "%s{}")
    ],
    *[
        case(f"no file can have it: {name!a:.20}", renamed(name), log=["1 of 2 test videos have features"])
        for name in ("../../escaped", "/etc/escaped", "a/b", "..", "n" * 5000, "a\0b")
    ],
    *[
        case(f"in a joint array: {name!a:.20}", lambda root, n=name: (joint(root), rename(root, n, tiny.objects)))
        for name in ("../../escaped", "/etc/escaped", "n" * 5000, "vidéo 漢字 🎬", "line\nbreak\x1b[2J", "", "..")
    ],
]


@pytest.mark.parametrize("case", NAMES)
def test_names_of_videos_stay_names(sound, tmp_path, case):
    """No name leads out of its folder, breaks a line, or stops a run."""
    inside = tmp_path / "one" / "two"
    ends_well(sound, inside, case)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"] and not list(tmp_path.rglob("*escaped*"))
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["two"]
