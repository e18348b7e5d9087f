"""Every option of SEAL on one screen: the two recipes as data, and the command line that may override any number."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import Any, Callable, NoReturn, Optional, Sequence, Tuple


@dataclass(frozen=True)
class Recipe:
    """The numbers of the losses. Fields are flags of the same name; each comment says what the number is."""

    # L_SME, Eq. (8)-(9)
    sme_attention: bool  # p of a video weighs each proposal with its attention A (Eq. 9), or not
    sme_moderate: float  # factor of the moderate-confidence mean, beside lambda(t) = 1 - t/T
    sme_schedule: (
        str  # its weight lambda_1: "linear" max(0, 1 - t/until) or "exp" exp(-0.05 t/until) (1 - exp(-10 t/until))
    )
    sme_until: int  # epoch from (linear) or after (exp) which lambda_1 is 0
    # L_pc, Eq. (10)
    gamma: float  # pseudo-true instances: A >= gamma * max A
    pc_centre: float  # factor of the centre term
    pc_distance: float  # factor of the d/I term
    pc_penalty: float  # factor of the penalty delta
    pc_all_pairs: bool  # centre term over all pairs (score i, geometry j) / V instead of i = j
    lambda_pc: float  # lambda_2
    # L_sc, Eq. (11)-(13)
    st_first_class: bool  # first class of the video only, and one mean over all N_c of the batch
    alpha_start: float  # alpha(t) = alpha_start + alpha_gain * t / alpha_epochs
    alpha_gain: float
    alpha_epochs: int
    sc_decay: float  # lambda_3 = exp(-t / sc_decay) up to epoch sc_until, then 0
    sc_until: int


RECIPES = {
    "paper": Recipe(
        sme_attention=True,
        sme_moderate=1.0,
        sme_schedule="linear",
        sme_until=30,
        gamma=0.9,
        pc_centre=1.0,
        pc_distance=1.0,
        pc_penalty=1.0,
        pc_all_pairs=False,
        lambda_pc=1.5,
        st_first_class=False,
        alpha_start=0.3,
        alpha_gain=0.2,
        alpha_epochs=50,
        sc_decay=8.0,
        sc_until=50,
    ),
    "release": Recipe(
        sme_attention=False,
        sme_moderate=0.5,
        sme_schedule="exp",
        sme_until=160,
        gamma=0.8,
        pc_centre=0.01,
        pc_distance=0.6,
        pc_penalty=9.0,
        pc_all_pairs=True,
        lambda_pc=3.4,
        st_first_class=True,
        alpha_start=0.3,
        alpha_gain=0.2,
        alpha_epochs=70,
        sc_decay=8.0,
        sc_until=70,
    ),
}


LOSSES = ("sme", "pc", "sc")


def _losses(text: str) -> Tuple[str, ...]:
    """A subset of the terms beside classification: ``sme,pc,sc``, ``pc``, ``none``."""
    names = () if text == "none" else tuple(text.split(","))
    if not set(names) <= set(LOSSES) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no subset of {','.join(LOSSES)}, nor none")
    return tuple(name for name in LOSSES if name in names)


def number(kind: type, low: float, high: float = 2**31 - 1, above: bool = False) -> Callable[[str], float]:
    """A finite number in [low, high], or in (low, high] with ``above``."""

    def convert(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and (low < value if above else low <= value) and value <= high):
            bounds = f"{'(' if above else '['}{low}, {high}]"
            raise argparse.ArgumentTypeError(f"{text} is not in {bounds}")
        return value

    convert.__name__ = "number" if kind is float else "whole number"
    return convert


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


class Parser(argparse.ArgumentParser):
    """argparse with the program's own form: texts as they are written, an error of one line, exit status 2."""

    def __init__(self, *words: Any, **how: Any) -> None:
        def form(prog: str) -> argparse.HelpFormatter:
            return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110)

        super().__init__(*words, **{"formatter_class": form, **how})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} - see {self.prog} --help\n")


# every number of a recipe as a flag: (type, meaning)
RECIPE_FLAGS = {
    "sme_attention": (_flag, "p of Eq. (9) weighs proposals with attention: true or false"),
    "sme_moderate": (number(float, 0), "factor of the moderate-confidence mean in Eq. (8)"),
    "sme_schedule": (("linear", "exp"), "shape of lambda_1 over epochs"),
    "sme_until": (number(int, 1), "epoch from which (linear), or after which (exp), lambda_1 is 0"),
    "gamma": (number(float, 0, 1), "pseudo-true instances of Eq. (10): A >= gamma max A"),
    "pc_centre": (number(float, 0), "factor of the centre term of Eq. (10)"),
    "pc_distance": (number(float, 0), "factor of d/I in Eq. (10)"),
    "pc_penalty": (number(float, 0), "factor of the penalty in Eq. (10)"),
    "pc_all_pairs": (_flag, "centre term over all pairs: true or false"),
    "lambda_pc": (number(float, 0), "lambda_2, weight of L_pc"),
    "st_first_class": (_flag, "L_st of Eq. (11) for the first class of a video only: true or false"),
    "alpha_start": (number(float, 0), "alpha(t) of Eq. (13) = start + gain t / epochs"),
    "alpha_gain": (number(float, 0), "see alpha_start"),
    "alpha_epochs": (number(int, 1), "see alpha_start"),
    "sc_decay": (number(float, 0, above=True), "lambda_3 = exp(-t / sc_decay)"),
    "sc_until": (number(int, 0), "last epoch with lambda_3 > 0"),
}


def parser() -> argparse.ArgumentParser:
    """The command line: grouped, each default with its reason."""
    p = Parser(
        prog="main.py",
        description="SEAL: weakly supervised temporal action localization (AAAI 2025).\n"
        "Trains on video-level labels, scores candidate proposals, reports mAP.",
        epilog="First steps:  python main.py --run_type train --dataset_name Demo",
        allow_abbrev=False,
    )
    count, share = number(int, 1), number(float, 0, 1)

    g = p.add_argument_group("what to do")
    g.add_argument("--run_type", choices=("train", "test", "predict"), default="train", help="default: train")
    g.add_argument("--pretrained_ckpt", metavar="FILE", help="checkpoint to test or predict with; ours or the authors'")
    text = "predict: folder of per-video features, or two of them: RGB and flow"
    g.add_argument("--features", nargs="+", metavar="DIR", help=text)
    g.add_argument("--proposals", metavar="FILE", help="predict: proposals of these videos, seconds")
    g.add_argument(
        "--exp_dir",
        metavar="DIR",
        help="where a run writes (default: output/NAME-RUN_TYPE or output/predict, the next free number)",
    )
    g.add_argument("--resume", action="store_true", help="go on from EXP_DIR/ckpt/last_state.pt, to the same bits")
    g.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: auto, CUDA if there is one"
    )
    g.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="of every random draw (default: 0)")

    g.add_argument(
        "--seeds",
        type=number(int, 0, 2**31),
        nargs="+",
        metavar="SEED",
        help="train one after the other into EXP_DIR/seedN; ends with mean and standard deviation",
    )

    g = p.add_argument_group(
        "data", "files as in the README; sizes come from the data, a flag that disagrees is an error"
    )
    g.add_argument(
        "--dataset_name",
        default="Thumos14reduced",
        metavar="NAME",
        help="default: Thumos14reduced, the paper's main set",
    )
    g.add_argument("--dataset_root", metavar="DIR", help="default: data/NAME")
    g.add_argument(
        "--proposals_root",
        metavar="DIR",
        help="folder of Proposals_NAME_{train,test}.json, Table 6 (default: the profile's, else proposals4NAME)",
    )
    g.add_argument(
        "--descriptors_root", metavar="DIR", help="default: descriptors/NAME; made from the training videos if missing"
    )
    g.add_argument("--num_class", type=count, metavar="C", help="default: as many as the classlist has")
    g.add_argument(
        "--feature_size",
        type=count,
        metavar="2D",
        help="RGB and flow together (default: width of the features; I3D: 2048)",
    )
    g.add_argument(
        "--fix_proposals", action="store_true", help="clip or drop bad proposals, with counts, instead of an error"
    )
    g.add_argument(
        "--cache_dir", default="cache", metavar="DIR", help="of the SCFE inputs (default: cache; THUMOS14 takes 1 GB)"
    )
    g.add_argument(
        "--cache_dtype",
        choices=("float32", "float16"),
        default="float32",
        help="default: float32, the same bits as without a cache; float16 halves it",
    )
    g.add_argument(
        "--no_cache",
        action="store_true",
        help="compute the SCFE inputs at every step: no disk, the same bits, much slower",
    )

    g = p.add_argument_group("model and training", "defaults are the paper's unless said otherwise")
    g.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="paper",
        help="numbers of the losses: the paper's (52.8) or the authors' later ones (55.2); default: paper",
    )
    g.add_argument(
        "--losses",
        type=_losses,
        default=LOSSES,
        metavar="LIST",
        help="any of sme,pc,sc or none, Table 3 (default: sme,pc,sc)",
    )
    g.add_argument(
        "--sme_labels",
        choices=("high", "high+moderate"),
        default="high+moderate",
        help="pseudo-labels, Table 5 (default: high+moderate)",
    )
    g.add_argument(
        "--descriptor_level", choices=("video", "segment"), default="video", help="Table 4 (default: video, Eq. 2)"
    )
    g.add_argument("--max_epoch", type=count, default=200, help="default: 200; lambda(t) of Eq. (8) = 1 - t/max_epoch")
    g.add_argument("--batch_size", type=count, default=10, help="videos a step (default: 10)")
    g.add_argument("--lr", type=number(float, 0, above=True), default=5e-5, help="of Adam (default: 5e-5)")
    g.add_argument("--weight_decay", type=number(float, 0), default=1e-3, help="L2, inside Adam (default: 1e-3)")
    g.add_argument(
        "--dropout_ratio",
        type=number(float, 0, 0.99),
        default=0.5,
        help="after the fusion layer (default: 0.5, P-MIL's)",
    )
    g.add_argument(
        "--roi_size",
        type=number(int, 6, 1200),
        default=12,
        help="bins of a proposal, a multiple of 6 (default: 12, P-MIL's)",
    )
    g.add_argument(
        "--max_proposal",
        type=count,
        default=3000,
        help="of a video in training, a random subset of more (default: 3000, P-MIL's)",
    )
    g.add_argument("--k", type=count, default=8, help="MIL takes the top M/k scores of a class (default: 8, P-MIL's)")
    g.add_argument(
        "--share_rows",
        action="store_true",
        help="one dropout draw for proposals that repeat a segment: faster, other draws",
    )
    g.add_argument(
        "--amp", choices=("off", "bf16"), default="off", help="mixed precision of the network (default: off)"
    )
    g.add_argument("--tf32", action="store_true", help="TF32 products on NVIDIA cards: faster, 10-bit mantissa")

    g.add_argument(
        "--save_seconds",
        type=number(float, 0),
        default=60.0,
        metavar="S",
        help="least time between two saves of the state that --resume needs (default: 60; 0: every epoch)",
    )

    g = p.add_argument_group("evaluation")
    g.add_argument(
        "--interval", type=count, default=10, help="epochs between evaluations (default: 10); never changes training"
    )
    g.add_argument(
        "--protocol",
        choices=("wtal", "exact", "exact210"),
        default="wtal",
        help="of mAP, README 'Protocols' (default: wtal, the literature's)",
    )
    g.add_argument(
        "--threshold_cls",
        type=share,
        default=0.25,
        help="video score from which a class is predicted (default: 0.25, the authors')",
    )

    g = p.add_argument_group("numbers of the recipe", "each replaces the recipe's own")
    for field in fields(Recipe):
        kind, meaning = RECIPE_FLAGS[field.name]
        values = " / ".join(f"{getattr(recipe, field.name)}".lower() for recipe in RECIPES.values())
        how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind, "metavar": "X"}
        g.add_argument(f"--{field.name}", help=f"{meaning} ({' / '.join(RECIPES)}: {values})", **how)
    return p


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe after its overrides."""
    return Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Options of a run, the recipe's numbers filled in where none is given. A wrong one exits with status 2."""
    p = parser()
    args = p.parse_args(argv)
    for name, value in vars(RECIPES[args.recipe]).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.lambda_pc == 0 or args.pc_centre == args.pc_penalty == 0:  # d/I alone has no gradient
        args.losses = tuple(name for name in args.losses if name != "pc")
    if args.resume and not args.exp_dir:
        p.error("--resume needs --exp_dir")
    if args.run_type == "train" and args.pretrained_ckpt:
        p.error("--pretrained_ckpt is for test and predict; a run goes on with --resume")
    if args.roi_size % 6:
        p.error(f"argument --roi_size: {args.roi_size} is no multiple of 6")
    needs = {"test": ("pretrained_ckpt",), "predict": ("pretrained_ckpt", "features", "proposals")}
    for name in needs.get(args.run_type, ()):
        if not getattr(args, name):
            p.error(f"--run_type {args.run_type} needs --{name}")
    if args.seeds and (len(set(args.seeds)) != len(args.seeds) or args.seed != p.get_default("seed")):
        p.error("argument --seeds: a seed stands twice, or beside --seed")
    foreign = {"seeds": "train", "resume": "train", "features": "predict", "proposals": "predict"}
    for name, run_type in foreign.items():
        if getattr(args, name) and args.run_type != run_type:
            p.error(f"--{name} is for --run_type {run_type}")
    if args.features and len(args.features) > 2:
        p.error("argument --features: one folder, or one of RGB and one of flow")
    return args
