"""``python -m utils.tools.download`` against a stand-in of gdown that copies from a local folder."""

from __future__ import annotations

import builtins
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import tiny
from tests.outcome import outcome, refused
from utils.tools.download import NAME, PARTS, main


@pytest.fixture
def drive(tmp_path) -> Path:
    """What the authors' links hold, by id; the features are in a folder of their own."""
    tiny.write(tmp_path / "made", name=NAME)
    folders = {name: tmp_path / "drive" / part.id for name, part in PARTS.items()}
    inner = folders["features"] / NAME
    shutil.copytree(tmp_path / "made" / f"{NAME}-Annotations", inner / f"{NAME}-Annotations")
    arrays = [np.load(path) for path in sorted((tmp_path / "made" / f"{NAME}-I3D-JOINTFeatures").iterdir())]
    np.save(inner / f"{NAME}-I3D-JOINTFeatures.npy", tiny.objects(arrays), allow_pickle=True)
    for name in ("proposals", "descriptors"):
        folders[name].mkdir()
    for split in ("train", "test"):
        shutil.copy(tmp_path / "made" / f"Proposals_{NAME}_{split}.json", folders["proposals"])
    for name in PARTS["descriptors"].names:
        np.save(folders["descriptors"] / name, np.zeros((2, 4), np.float32))
    folders["checkpoint"].write_bytes(b"weights")
    return tmp_path / "drive"


@pytest.fixture
def asked(monkeypatch, drive) -> list:
    """The ids that the stand-in of gdown was asked for."""
    ids: list = []

    def download_folder(id: str, output: str, resume: bool) -> list:
        ids.append(id)
        shutil.copytree(drive / id, output, dirs_exist_ok=True)
        return [output]

    def download(id: str, output: str, resume: bool) -> str:
        ids.append(id)
        return shutil.copy(drive / id, output)

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download, download_folder=download_folder))
    return ids


def test_everything_comes_to_its_place_is_checked_and_is_not_fetched_again(tmp_path, asked):
    done = outcome(main, ["--root", tmp_path / "seal"])
    assert done.status == 0 and "features of" not in done.log and " 0 errors" in done.out, done
    assert "a joint array [T, 8] of float32" in done.out and asked == [part.id for part in PARTS.values()]
    for part in PARTS.values():
        assert all((tmp_path / "seal" / part.folder / name).is_file() for name in part.names)
    (tmp_path / "seal" / "checkpoints" / "best_model.pkl").unlink()
    again = outcome(main, ["--root", tmp_path / "seal"])
    assert again.status == 0 and again.out.count("already in") == 3 and asked[4:] == [PARTS["checkpoint"].id]


def test_a_part_alone_can_be_fetched_and_the_check_says_what_is_still_missing(tmp_path, asked):
    done = outcome(main, ["features", "--root", tmp_path])
    assert done.status == 2 and asked == [PARTS["features"].id] and "no such file" in done.out
    refused(outcome(main, ["feature", "--root", tmp_path]), "none of features, proposals")


@pytest.mark.parametrize("error", [RuntimeError("Too many users have viewed\nthis file"), OSError("no route"), None])
def test_a_drive_that_refuses_is_one_line_with_the_link(tmp_path, asked, monkeypatch, error):
    def refuse(**_):
        if error:
            raise error

    monkeypatch.setattr(sys.modules["gdown"], "download", refuse)
    line = refused(outcome(main, ["checkpoint", "--root", tmp_path]), PARTS["checkpoint"].link, "by hand into")
    assert not error or str(error).split("\n")[0] in line


def test_a_folder_of_other_files_is_said(tmp_path, asked, drive):
    (drive / PARTS["proposals"].id / f"Proposals_{NAME}_test.json").rename(drive / "elsewhere.json")
    refused(outcome(main, ["proposals", "--root", tmp_path]), f"no Proposals_{NAME}_test.json among what came")


def test_without_gdown_the_line_says_what_to_install_and_the_link(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "gdown":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(outcome(main, ["--root", tmp_path]), "pip install gdown", PARTS["features"].link)
    assert not list(tmp_path.iterdir())


def test_the_links_are_those_of_the_authors_page(shared):
    page = (shared / "paper" / "authors-readme.md").read_text()
    assert all(part.link in page for part in PARTS.values())
