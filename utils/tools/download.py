"""The authors' files for THUMOS14 into their places: ``python -m utils.tools.download --help``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence, Tuple

from options import Parser
from utils.errors import InputError, run_command
from utils.tools import check

DRIVE = "https://drive.google.com/"


class Part(NamedTuple):
    """One link of the authors' page, and what is behind it."""

    id: str  # of a folder, or of a single file
    folder: str  # where it goes
    names: Tuple[str, ...]  # files that it must hold
    single: bool = False

    @property
    def link(self) -> str:
        return DRIVE + (f"file/d/{self.id}/view" if self.single else f"drive/folders/{self.id}")


NAME = "Thumos14reduced"
ANNOTATIONS = ("classlist", "duration", "labels", "labels_all", "segments", "subset", "videoname")
PARTS = {
    "features": Part(
        "1_fGZpPM0PCTAgGQbQpBQEhK2KculypEu",
        f"data/{NAME}",
        (f"{NAME}-I3D-JOINTFeatures.npy", *(f"{NAME}-Annotations/{name}.npy" for name in ANNOTATIONS)),
    ),
    "proposals": Part(
        "13iuiiz4xlbAmCMZCwH1xVxPs_meSHoCy",
        "proposals4Thumos14",
        (f"Proposals_{NAME}_train.json", f"Proposals_{NAME}_test.json"),
    ),
    "descriptors": Part(
        "1rq6yXEADQMKprHHdXQuyfcuWBDj3X0mx",
        f"descriptors/{NAME}",
        ("general_appearance_descriptors.npy", "general_motion_descriptors.npy"),
    ),
    "checkpoint": Part("1B9K-cRtGeKvxWY458rweRNT_bQW2dz3T", "checkpoints", ("best_model.pkl",), single=True),
}


def fetch(part: Part, root: Path, gdown: Any) -> None:
    """Download what is missing of a part below ``root``; a partial download goes on. Raises InputError."""
    folder = root / part.folder
    folder.mkdir(parents=True, exist_ok=True)
    todo = f"try again later, or download {part.link} by hand into {folder}"
    try:
        if part.single:
            came = gdown.download(id=part.id, output=str(folder / part.names[0]), resume=True)
        else:
            came = gdown.download_folder(id=part.id, output=str(folder), resume=True)
    except Exception as error:  # gdown's own, those of requests, and whatever a changed page leads to
        if isinstance(error, OSError) and error.errno:  # a full disk
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"the download was refused: {reason}", part.link, todo) from error
    if not came:
        raise InputError("the download was refused", part.link, todo)
    inside = [] if (folder / part.names[0]).exists() else sorted(folder.rglob(part.names[0]))
    for path in inside[0].parent.iterdir() if inside else ():  # the drive has them in a folder of their own
        os.replace(path, folder / path.name)
    missing = [name for name in part.names if not (folder / name).exists()]
    if missing:
        raise InputError(f"no {', '.join(missing)} among what came", folder, f"see {part.link}")


ABOUT = f"""Download the authors' files for THUMOS14 from their drive into the places where main.py looks, then check
them. Complete files stay, partial ones are continued. Needs the package gdown.

{chr(10).join(f"  {name:<12} {part.link}{chr(10)}{'':15}-> {part.folder}" for name, part in PARTS.items())}"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command; returns the exit status of the check. Raises InputError."""
    parser = Parser(prog="python -m utils.tools.download", description=ABOUT)
    text = f"some of {', '.join(PARTS)} (default: all)"
    parser.add_argument("parts", nargs="*", metavar="PART", help=text)
    parser.add_argument("--root", type=Path, default=Path("."), metavar="DIR", help="default: %(default)s, the project")
    args = parser.parse_args(argv)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(PARTS)}")
    for name in args.parts or PARTS:
        part = PARTS[name]
        if all((args.root / part.folder / file).exists() for file in part.names):
            print(f"{name}: already in {args.root / part.folder}")
            continue
        try:
            import gdown
        except ImportError:
            todo = f"pip install gdown, or download {part.link} by hand into {args.root / part.folder}"
            raise InputError("downloading needs the package gdown", None, todo) from None
        print(f"{name}: {part.link} -> {args.root / part.folder}", flush=True)
        fetch(part, args.root, gdown)
    print()
    places = [("--dataset_root", "features"), ("--proposals_root", "proposals")]
    return check.main([word for flag, name in places for word in (flag, str(args.root / PARTS[name].folder))])


if __name__ == "__main__":
    run_command(main)
