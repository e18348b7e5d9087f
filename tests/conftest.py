"""What every test shares: the project on the path, the real data when it is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores; threads on top would only wait

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of golden numbers: those of the authors' implementation that hold random inputs only, or SEAL_GOLDEN."""
    return Path(os.environ.get("SEAL_GOLDEN") or Path(__file__).parent / "golden")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations, proposals and features beside the project; skips where they are absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("real data (../shared) is not beside the project")
    return folder


@pytest.fixture(scope="session")
def golden_thumos(golden: Path, shared: Path) -> Path:
    """Folder of golden numbers that hold THUMOS14's annotations: SEAL_GOLDEN if they are in it, else beside us."""
    return golden if (golden / "detection_map.json").is_file() else shared / "golden"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A tiny dataset of eight videos to train on and four to test on, shared by the tests of a file."""
    from tests import tiny

    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


@pytest.fixture(scope="module")
def hurried():
    """Training in this process without pictures and fsync, which would take most of the time."""
    from tests.changes import hurry

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A tiny dataset that nothing is wrong with, and what a training on it leaves."""
    from tests.changes import make_sound

    return make_sound(tmp_path_factory.mktemp("sound"))
