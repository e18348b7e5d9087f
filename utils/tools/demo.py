"""Simulated two-stream features: for trying the program, not for results.

examples:
  python -m utils.tools.demo --out data/Demo
      the dataset Demo; main.py --dataset_name Demo makes it where it is missing
  python -m utils.tools.demo --annotations DIR/Thumos14reduced-Annotations --out data/Thumos14reduced
      THUMOS14 at full size, for its real proposals
  python -m utils.tools.demo --annotations DIR/activity_net.v1-2.min-missing-removed.json \\
                             --out data/ActivityNet1.2 --width 128 --proposals 30
      ActivityNet1.2 with simulated proposals
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Optional, Sequence

from options import COUNT, Parser, number
from utils.datasets.profile import PROFILES, proposals_file
from utils.datasets.simulate import DEMO, make_demo, simulate
from utils.errors import run_command


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Make the data and print the command that trains on them. Raises InputError."""
    parser = Parser(prog="python -m utils.tools.demo", description=__doc__)
    add = parser.add_argument_group("what to make").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write into; it is made if need be")
    text = "simulate features for these (default: invent the small dataset Demo); a folder NAME-Annotations names the "
    text += "dataset, else the last part of --out does, whose dataset.json says what no built-in profile does"
    add("--annotations", type=Path, metavar="PATH", help=text)
    text = "proposals to simulate for each video (default: 0, use real ones; Demo always has 115)"
    add("--proposals", type=number(int, 0), default=0, metavar="N", help=text)
    add = parser.add_argument_group("how").add_argument
    text = "values of one modality (default: 1024 as I3D's; Demo 64, to train in a minute)"
    add("--width", type=COUNT, metavar="D", help=text)
    text = "default: %(default)s, as released features are"
    add("--dtype", choices=("float16", "float32"), default="float16", help=text)
    add("--seed", type=number(int, 0), default=0, metavar="N", help="random seed (default: %(default)s)")
    args = parser.parse_args(argv)
    demo = args.annotations is None
    if demo and args.proposals:
        parser.error("--proposals is for --annotations")
    if demo:
        name, profile = DEMO, PROFILES[DEMO]
        make_demo(args.out, args.seed, width=args.width or 64, dtype=args.dtype)
    else:
        how = (args.width or 1024, args.seed, args.dtype, args.proposals)
        name, profile = simulate(args.annotations, args.out, *how)
    print(f"SIMULATED features of {name} are in {args.out}: for trying the program, not for results.")
    line = ["python", "main.py", "--run_type", "train", "--dataset_name", name, "--dataset_root", str(args.out)]
    if demo or args.proposals:
        line += ["--proposals_root", str(args.out)]
    elif not proposals_file(name, profile, "train").exists():
        place = proposals_file(name, profile, "{train,test}")
        print(f"Training needs {place.name} in {place.parent}; --proposals 100 simulates them.")
    print(shlex.join(line))


if __name__ == "__main__":
    run_command(main)
