"""Everything that can be wrong with a dataset, found in one pass over its files: ``python -m utils.tools.check``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from eval.detection import evaluate_detections
from options import Parser
from utils.datasets.annotations import Read, read_annotations
from utils.datasets.features import Features, open_features
from utils.datasets.profile import Profile, annotations_path, dataset_root, load_profile, proposals_file
from utils.datasets.proposals import duplicates, load_proposals
from utils.datasets.rates import check_rate
from utils.errors import InputError, os_error_line, printable, run_command, some
from utils.run.report import rounding_lines
from utils.segments import check_units

ABOUT = """Check a dataset: annotations, features against them, proposals against both. Every finding is a line:
  ok     as it should be, with the numbers
  note   worth knowing; nothing stops
  error  training or evaluation would stop or be wrong; the line says what to do
The last line counts them. Exit status 2 with errors, else 0. Every feature file is read once."""
MOST = 8  # lines for the problems of one topic; those that differ in their place alone share a line
EDGE_S = 0.01  # an instance may end this far beyond its video: both are rounded


class Findings:
    """Prints each finding when it is made, under the current ``topic``, and counts them."""

    def __init__(self) -> None:
        self.counts: Dict[str, int] = Counter()
        self.topic = ""

    def add(self, level: str, text: str) -> None:
        """One line: ``ok``, ``note`` or ``error``, the last with what to do after a dash."""
        self.counts[level] += 1
        print(f"{level:<5}  {self.topic:<11}  {printable(' '.join(text.split()))}")

    def names(self, level: str, names: Sequence[str], noun: str, text: str, todo: str = "") -> None:
        """``3 NOUNs TEXT: the first few names - TODO``; nothing where there are no names."""
        if names:
            self.add(level, f"{many(len(names), noun)} {text}: {some(names)}" + (f" - {todo}" if todo else ""))

    def problems(self, problems: Sequence[InputError]) -> None:
        """An error for all that share what is wrong and what to do, with the places where it is."""
        places: Dict[Tuple, Dict[str, None]] = {}
        for problem in problems:
            places.setdefault((problem.what, problem.todo), {})[str(problem.where or "")] = None
        for (what, todo), (first, *others) in list(places.items())[:MOST]:
            also = f"; {some([_item(place) for place in others])}" if others else ""
            self.add("error", str(InputError(what, (first + also) or None, todo)))
        rest = [_item(place) for group in list(places.values())[MOST:] for place in group]
        self.names("error", rest, "problem", "more of this kind", "fix these and check again")

    def close(self) -> int:
        """Print the counts; returns the exit status, 2 with errors."""
        ok, notes, errors = (self.counts[level] for level in ("ok", "note", "error"))
        print(f"\n{ok} ok, {many(notes, 'note')}, {many(errors, 'error')}")
        return 2 if errors else 0


def _item(place: str) -> str:
    """A place without its file: ``FILE, video`` -> ``video``."""
    return place.split(", ", 1)[-1]


def many(number: float, noun: str) -> str:
    """``1 video``, ``2,000 videos``, ``29.97 frames``, ``2 classes``."""
    shown = f"{number:,.0f}" if number == round(number) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def spread(numbers: Sequence[float]) -> str:
    """Smallest, middle and largest of some numbers."""
    series = pd.Series(numbers)
    return f"min {series.min():,g}, median {series.median():,g}, max {series.max():,g}"


def attempt(problems: List[InputError], action: Callable, *arguments: Any) -> Optional[Any]:
    """``action(*arguments)``, or None where that is refused: the refusal then joins ``problems``."""
    try:
        return action(*arguments)
    except InputError as error:
        problems.append(error)
    except OSError as error:
        problems.append(InputError(os_error_line(error)))
    return None


def subsets(profile: Profile) -> Tuple[Tuple[str, str], Tuple[str, str]]:
    """Role and name of either subset."""
    return ("train", profile.train_subset), ("test", profile.test_subset)


def check_annotations(f: Findings, name: str, root: Path, profile: Profile) -> Optional[Read]:
    """Check all that needs annotations alone; None where they cannot be read."""
    f.topic, problems = "annotations", []
    path = attempt(problems, annotations_path, name, root, profile)
    read = path and attempt(problems, read_annotations, path, profile)
    if read is None:
        f.problems(problems)
        f.add("note", "features and proposals are checked against them, so not this time")
        return None
    annotations, instances, ambiguous_s, problems, notes = read
    videos, classes, duration_s = annotations.videos, annotations.classes, annotations.duration_s
    f.problems(problems)
    form = "W-TALC's files" if path.is_dir() else "a CSV" if path.suffix.lower() == ".csv" else "ActivityNet's JSON"
    counts = f"{many(len(videos), 'video')}, {many(len(classes), 'class')}, {many(len(instances.video), 'instance')}"
    f.add("note" if problems else "ok", f"{form} in {path}: {counts}")
    for note in notes:
        f.add("note", note)
    if profile.train_subset == profile.test_subset:
        text = f"train_subset and test_subset are both {profile.test_subset!r}: every test video is trained on"
        f.add("note", f"{text}, results say nothing about new ones")
    for role, subset in subsets(profile):
        members = annotations.of(subset)
        if role == "test" and set(annotations.subset) == {profile.train_subset}:
            f.add("note", f"no test video: none is of subset {subset!r}, so nothing will be evaluated")
            continue
        if not len(members):
            todo = f"name {role}_subset in dataset.json, one of {sorted(set(annotations.subset))}"
            f.add("error", f"no {role} video: none is of subset {subset!r} - {todo}")
            continue
        labels = np.asarray([c for i in members for c in annotations.labels[i]], dtype=np.int64)
        count = pd.Series(np.bincount(labels, minlength=len(classes)), index=classes)  # of videos
        least, most = count.idxmin(), count.idxmax()
        balance = f"min {count[least]} ({least}), median {count.median():g}, max {count[most]} ({most})"
        f.add("ok", f"{role} is {subset!r}: {many(len(members), 'video')}; videos of a class: {balance}")
        todo = "label some, or take it out of the class list: Eq. (1)-(4) need a descriptor of every class"
        level, todo, effect = ("error", todo, ", trained as background") if role == "train" else ("note", "", "")
        f.names(level, count.index[count == 0].tolist(), "class", f"without a {role} video", todo)
        bare = [videos[i] for i in members if not annotations.labels[i]]
        f.names("note", bare, f"{role} video", "without a label" + effect)
    for subset in set(annotations.subset) - {profile.train_subset, profile.test_subset}:
        f.add("note", f"{many(annotations.subset.count(subset), 'video')} of subset {subset!r}, not used")
    strange = sorted(set(profile.excluded_videos) - set(videos))
    f.names("note", strange, "name", "in excluded_videos but not in the annotations")
    wrong = [v for v, s in zip(videos, duration_s) if s <= 0 or np.isinf(s)]
    f.names("error", wrong, "duration", "that cannot be", "give seconds, or leave them out")
    unknown = [v for v, s in zip(videos, duration_s) if np.isnan(s)]
    f.names("note", unknown, "video", "without a duration, for which (T + 1) * stride / fps is taken")
    timed = [set(instances.of(v)[1].tolist()) for v in videos]
    differ = [v for v, weak, strong in zip(videos, annotations.labels, timed) if strong and set(weak) != strong]
    f.names("note", differ, "video", "with a weak label (training reads it) other than the classes of its instances")
    bare = [videos[i] for i in annotations.of(profile.test_subset) if not timed[i]]
    f.names("note", bare, "test video", "without an instance")
    if ambiguous_s:
        count = many(sum(map(len, ambiguous_s.values())), "ambiguous interval")
        f.add("ok", f"{count} in {many(len(ambiguous_s), 'video')}")
    return read


def check_features(
    f: Findings, problems: List[InputError], features: Optional[Features], read: Read, profile: Profile
) -> Dict[str, float]:
    """Read every video once. problems: what kept the features from being opened.

    Returns seconds that each video of sound features can have: T + 1 snippets, as a last, partial one has no row.
    """
    f.topic, annotations = "features", read.annotations
    layout = features and attempt(problems, lambda: features.layout)
    if layout is None:
        f.problems(problems)
        return {}
    if features.simulated:
        f.add("note", f"SIMULATED: results say nothing about real videos, see {features.simulated}")
    videos = list(features.videos)
    rows = Parallel(n_jobs=4, prefer="threads", return_as="generator")(delayed(_read)(features, v) for v in videos)
    rows = list(tqdm(rows, "reading features", len(videos), unit="video", disable=None, leave=False))
    features.release()
    problems += [problem for *_, more in rows for problem in more]
    f.problems(problems)
    sound = pd.DataFrame([row[:3] for row in rows], index=videos, columns=["T", "type", "zero"])
    sound = sound[sound["T"] > 0]
    kinds = sound["type"].value_counts(sort=False)
    values = " and ".join(f"{kind} ({number:,})" if len(kinds) > 1 else kind for kind, number in kinds.items())
    (size, transposed), parts = layout, features.parts
    form = "a joint array" if features.sources[0].is_file() else "files" if parts == 1 else "RGB and flow files"
    shape = f"[{size // parts}, T]" if transposed else f"[T, {size // parts}]"
    where = ", ".join(map(str, features.sources))
    f.add("note" if problems else "ok", f"{form} {shape} of {values or 'nothing that can be used'}: {where}")
    for note in features.notes:
        f.add("note", note)
    f.names("note", sound.index[sound["zero"].astype(bool)].tolist(), "video", "of nothing but zeros")
    for role, subset in subsets(profile):
        members = [annotations.videos[i] for i in annotations.of(subset)]
        missing = sorted(set(members) - set(videos))
        have = "has" if len(members) == 1 else "have"
        text = f"{len(members) - len(missing):,} of {many(len(members), f'{role} video')} {have} features"
        if len(missing) == len(members) > 0:
            f.add("error", f"{text} - files are found by the names in the annotations")
        elif members:
            f.add("note" if missing else "ok", text + (f", left out: {some(missing)}" if missing else ""))
    f.names("note", features.unused(), "file", "not read (no annotated video, RGB without flow, or another file is)")
    if not len(sound):
        return {}
    f.add("ok", f"finite numbers in {many(len(sound), 'video')}; T, in snippets, is {spread(sound['T'])}")
    names, snippets = sound.index.tolist(), sound["T"].to_numpy()
    duration_s = pd.Series(annotations.duration_s, annotations.videos)[names].to_numpy()
    problems = []
    rates = attempt(problems, profile.rates, names, snippets, duration_s)
    fit = None if rates is None else check_rate(names, snippets, duration_s, profile)
    if fit and fit.problem:
        problems.append(fit.problem)
    elif fit:
        f.add("ok", fit.summary)
        f.names("note", fit.off, "video", "off by more than 2 snippets and 5 %")
    f.problems(problems)
    return {} if rates is None else dict(zip(names, (snippets + 1) / rates))


def _read(features: Features, video: str) -> Tuple[int, str, bool, List[InputError]]:
    """T (0: nothing that can be used), type, whether all is zero, and problems."""
    problems: List[InputError] = []
    array = attempt(problems, features.read, video)
    sound = None if array is None else attempt(problems, features.sound, video, array)
    return (0, "", False, problems) if sound is None else (len(sound), array.dtype.name, not sound.any(), problems)


def check_instances(f: Findings, read: Read, longest_s: np.ndarray, profile: Profile) -> None:
    """Instances against their video. longest_s: float64 [N] seconds that each video can have, NaN if unknown."""
    f.topic, instances, videos = "annotations", read.instances, read.annotations.videos
    (start_s, end_s), length_s = instances.segment_s.T, longest_s[instances.video]
    units = check_units(instances.segment_s, length_s, "instances")
    f.problems([units] if units else [])
    over_s = end_s - length_s
    repeats = pd.DataFrame(np.c_[instances.video, instances.label, instances.segment_s]).duplicated().to_numpy()
    kinds = (
        (repeats, "repeating another, each counted"),
        (end_s == start_s, "with no length, which no detection can match"),
        (over_s > EDGE_S, f"ending beyond the video, by up to {np.nanmax([0, *over_s]):.2f} s"),
        (np.isnan(over_s), "of unknown length, not checked against it"),
    )
    worst_first = np.argsort(-over_s, kind="stable")
    for bad, text in kinds:
        names = list(dict.fromkeys(videos[i] for i in instances.video[worst_first[bad[worst_first]]]))
        f.names("note", names, "video", f"with {many(int(bad.sum()), 'instance')} {text}")
    if len(end_s) and not any(bad.any() for bad, _ in kinds[1:]):
        f.add("ok", "every instance lies inside its video")
    if profile.round_ground_truth:
        truth = instances.keep([videos[i] for i in read.annotations.of(profile.test_subset)])
        for line in rounding_lines(evaluate_detections(truth, truth.keep([]), profile)):
            f.add("note", f"protocol wtal: {line}")


def check_proposals(f: Findings, role: str, videos: Sequence[str], path: Path, longest_s: Dict[str, float]) -> None:
    """The proposals of one split against its videos."""
    f.topic, problems = "proposals", []
    loaded = attempt(problems, load_proposals, path, longest_s)
    f.problems(problems + (loaded.problems if loaded else []))
    if loaded is None:
        return
    mine = {v: loaded.segments_s[v] for v in videos if v in loaded.segments_s}
    if not mine:
        text = f"{role}: {path} has none for {many(len(videos), 'video')}"
        f.add("error", f"{text} - is it this split's, with the annotations' names?")
        return
    level = "note" if loaded.problems else "ok"
    f.add(level, f"{role}: {path}, for {len(mine):,} of {many(len(videos), 'video')}")
    number, twice = [len(p) for p in mine.values()], duplicates(list(mine.values()))
    repeat = "repeats" if twice == 1 else "repeat"
    f.add("ok", f"{role}: {sum(number):,} ({spread(number)} a video), {twice:,} of them {repeat} another")
    effect = "not trained on" if role == "train" else "nothing is detected in them"
    f.names("note", [v for v in videos if v not in mine], f"{role} video", f"without a proposal, {effect}")
    for note in loaded.notes:
        f.add("note", note)
    f.names("note", [v for v in loaded.segments_s if v not in mine], "video", f"of another subset in {path}, ignored")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command; returns the exit status, 2 with errors, else 0. Raises InputError without a dataset to look at."""
    parser = Parser(prog="python -m utils.tools.check", description=ABOUT)
    parser.add_argument("--dataset_name", default="Thumos14reduced", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME)")
    text = "folder of Proposals_NAME_{train,test}.json (default: the profile's, else proposals4NAME)"
    parser.add_argument("--proposals_root", metavar="DIR", help=text)
    text = "2D, RGB and flow together; tells [T, 2D] from [2D, T] (default: from the files)"
    parser.add_argument("--feature_size", type=int, metavar="N", help=text)
    args = parser.parse_args(argv)
    name, root = args.dataset_name, dataset_root(args.dataset_name, args.dataset_root)
    profile, f, problems = load_profile(name, root), Findings(), []
    rate = "a rate of its own for each video"
    if not profile.rescaled and not isinstance(profile.feature_fps, dict):
        fps, stride = profile.feature_fps, profile.snippet_stride
        rate = f"{many(fps, 'frame')} a second, {many(stride, 'frame')} a snippet, {stride / fps:.4g} s a snippet"
    print(f"{name} in {root}: {rate}\n")
    read = check_annotations(f, name, root, profile)
    if read:
        annotations = read.annotations
        features = attempt(problems, open_features, name, root, profile, annotations, args.feature_size)
        by_t_s = check_features(f, problems, features, read, profile)
        stated = np.isfinite(annotations.duration_s) & (annotations.duration_s > 0)
        longest_s = np.where(stated, annotations.duration_s, [by_t_s.get(v, np.nan) for v in annotations.videos])
        check_instances(f, read, longest_s, profile)
        for role, subset in subsets(profile):
            videos, path = annotations.of(subset), proposals_file(name, profile, role, args.proposals_root)
            videos = [annotations.videos[i] for i in videos]
            if videos:
                check_proposals(f, role, videos, path, dict(zip(annotations.videos, longest_s.tolist())))
    return f.close()


if __name__ == "__main__":
    run_command(main)
