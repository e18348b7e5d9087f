"""Check a dataset: annotations, features against them, proposals against both. Every finding is a line:
  ok     as it should be, with the numbers
  note   worth knowing; nothing stops
  error  training or evaluation would stop or be wrong; the line says what to do
The last line counts them. Exit status 2 with errors, else 0. Every feature file is read once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from eval.detection import evaluate_detections
from options import OPTIONS, Parser, add_option
from utils.datasets.annotations import Read, read_annotations
from utils.datasets.features import Features, open_features
from utils.datasets.profile import Profile, annotations_path, dataset_root, load_profile, proposals_file
from utils.datasets.proposals import duplicates, load_proposals
from utils.datasets.rates import check_rate
from utils.errors import InputError, os_error_line, printable, run_command, some
from utils.run.report import rounding_lines
from utils.segments import check_units

DATA = ("dataset_name", "dataset_root", "proposals_root", "feature_size")  # options of main.py
MOST = 8  # lines for the problems of one topic; those that differ in their place alone share a line
EDGE_S = 0.01  # an instance may end this far beyond its video: both are rounded


class Findings:
    """Prints each finding when it is made, under the current ``topic``, and counts them."""

    def __init__(self) -> None:
        self.counts: Dict[str, int] = Counter()
        self.topic = ""

    def add(self, level: str, *lines: str) -> None:
        """Findings of one level: ``ok``, ``note`` or ``error``, the last with what to do after a dash."""
        for line in lines:
            self.counts[level] += 1
            print(f"{level:<5}  {self.topic:<11}  {printable(' '.join(line.split()))}")

    def names(self, level: str, names: Sequence[str], noun: str, text: str, todo: str = "") -> None:
        """``3 NOUNs TEXT: the first few names - TODO``; nothing where there are no names."""
        if len(names):
            self.add(level, f"{many(len(names), noun)} {text}: {some(list(names))}" + (f" - {todo}" if todo else ""))

    def problems(self, problems: Sequence[InputError]) -> None:
        """An error for all that share what is wrong and what to do, with the places where it is."""
        groups: Dict[Tuple, List[str]] = {}
        for problem in problems:
            groups.setdefault((problem.what, problem.todo), []).append(str(problem.where or ""))
        for (what, todo), (first, *others) in list(groups.items())[:MOST]:
            items = [place.split(", ", 1)[-1] for place in others]  # FILE, video -> video
            self.add(
                "error", str(InputError(what, "; ".join([first, *([some(items)] if items else [])]) or None, todo))
            )
        rest = [place.split(", ", 1)[-1] for places in list(groups.values())[MOST:] for place in places]
        self.names("error", rest, "problem", "more of this kind", "fix these and check again")

    def attempt(self, action: Callable, *arguments: Any) -> Any:
        """``action(*arguments)``, or None where that is refused, which is an error."""
        value, problems = attempt(action, *arguments)
        self.problems(problems)
        return value

    def close(self) -> int:
        """Print the counts; returns the exit status, 2 with errors."""
        ok, notes, errors = (self.counts[level] for level in ("ok", "note", "error"))
        print(f"\n{ok} ok, {many(notes, 'note')}, {many(errors, 'error')}")
        return 2 if errors else 0


def many(number: float, noun: str) -> str:
    """``1 video``, ``2,000 videos``, ``29.97 frames``, ``2 classes``."""
    shown = f"{number:,.0f}" if number == round(number) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def spread(numbers: Sequence[float]) -> str:
    """Smallest, middle and largest of some numbers."""
    series = pd.Series(numbers)
    return f"min {series.min():,g}, median {series.median():,g}, max {series.max():,g}"


def attempt(action: Callable, *arguments: Any) -> Tuple[Any, List[InputError]]:
    """(``action(*arguments)``, []), or (None, [why]) where that is refused."""
    try:
        return action(*arguments), []
    except InputError as error:
        return None, [error]
    except OSError as error:
        return None, [InputError(os_error_line(error))]


def check_annotations(f: Findings, path: Path, read: Read, profile: Profile) -> None:
    """What annotations alone can tell."""
    (annotations, instances, ambiguous_s, problems, notes), subsets = read, set(read.annotations.subset)
    videos, classes, duration_s = annotations.videos, annotations.classes, annotations.duration_s
    f.problems(problems)
    form = "W-TALC's files" if path.is_dir() else "a CSV" if path.suffix.lower() == ".csv" else "ActivityNet's JSON"
    counts = f"{many(len(videos), 'video')}, {many(len(classes), 'class')}, {many(len(instances.video), 'instance')}"
    f.add("note" if problems else "ok", f"{form} in {path}: {counts}")
    f.add("note", *notes)
    if profile.train_subset == profile.test_subset:
        what = f"train_subset and test_subset are both {profile.test_subset!r}: every test video is trained on"
        f.add("note", f"{what}, results say nothing about new ones")
    for role, subset in (("train", profile.train_subset), ("test", profile.test_subset)):
        members = annotations.of(subset)
        if role == "test" and subsets == {profile.train_subset}:
            f.add("note", f"no test video: none is of subset {subset!r}, so nothing will be evaluated")
        elif not len(members):
            todo = f"name {role}_subset in dataset.json, one of {sorted(subsets)}"
            f.add("error", f"no {role} video: none is of subset {subset!r} - {todo}")
        else:
            labels = [classes[c] for i in members for c in annotations.labels[i]]
            count = pd.Series(labels, dtype=object).value_counts().reindex(list(classes), fill_value=0)  # of videos
            balance = f"min {count.min()} ({count.idxmin()}), median {count.median():g}, max {count.max()}"
            text = f"{many(len(members), 'video')}; videos of a class: {balance} ({count.idxmax()})"
            f.add("ok", f"{role} is {subset!r}: {text}")
            todo = "label some, or take it out of the class list: Eq. (1)-(4) need a descriptor of every class"
            level, todo, effect = ("error", todo, ", trained as background") if role == "train" else ("note", "", "")
            f.names(level, count.index[count == 0], "class", f"without a {role} video", todo)
            bare = [videos[i] for i in members if not annotations.labels[i]]
            f.names("note", bare, f"{role} video", "without a label" + effect)
    for subset in subsets - {profile.train_subset, profile.test_subset}:
        f.add("note", f"{many(annotations.subset.count(subset), 'video')} of subset {subset!r}, not used")
    timed: Dict[int, set] = pd.Series(instances.label).groupby(instances.video).agg(set).to_dict()
    differ = [videos[v] for v in timed if set(annotations.labels[v]) != timed[v]]
    wrong, unknown = (duration_s <= 0) | np.isinf(duration_s), np.isnan(duration_s)
    strange = sorted(set(profile.excluded_videos) - set(videos))
    bare = [videos[i] for i in annotations.of(profile.test_subset) if i not in timed]
    f.names("note", strange, "name", "in excluded_videos but not in the annotations")
    f.names("error", np.array(videos)[wrong], "duration", "that cannot be", "give seconds, or leave them out")
    f.names("note", np.array(videos)[unknown], "video", "without a duration: (T + 1) * stride / fps is taken")
    f.names("note", differ, "video", "with a weak label (training reads it) other than the classes of its instances")
    f.names("note", bare, "test video", "without an instance")
    if ambiguous_s:
        count = many(sum(map(len, ambiguous_s.values())), "ambiguous interval")
        f.add("ok", f"{count} in {many(len(ambiguous_s), 'video')}")


def check_features(
    f: Findings, features: Features, read: Read, splits: Dict[str, List[str]], profile: Profile
) -> Dict[str, float]:
    """Read every video once. Returns seconds that each video of sound features can have: T + 1 snippets, as a last,
    partial one has no row."""
    (size, transposed), parts, videos = features.layout, features.parts, list(features.videos)
    if features.simulated:
        f.add("note", f"SIMULATED: results say nothing about real videos, see {features.simulated}")

    def facts(video: str) -> Tuple[int, str, bool]:
        array = features.read(video)
        sound = features.sound(video, array)
        return len(sound), array.dtype.name, not sound.any()

    threads = Parallel(n_jobs=4, prefer="threads", return_as="generator")
    found = threads(delayed(attempt)(facts, video) for video in videos)
    found = list(tqdm(found, "reading features", len(videos), unit="video", disable=None, leave=False))
    features.release()
    problems = [problem for _, more in found for problem in more]
    f.problems(problems)
    sound = {video: row for video, (row, _) in zip(videos, found) if row}
    table = pd.DataFrame.from_dict(sound, "index", columns=["T", "type", "zero"])
    kinds = table["type"].value_counts(sort=False).items()
    values = " and ".join(f"{kind} ({number:,})" for kind, number in kinds) or "nothing that can be used"
    form = "a joint array" if features.sources[0].is_file() else "files" if parts == 1 else "RGB and flow files"
    shape = f"[{size // parts}, T]" if transposed else f"[T, {size // parts}]"
    where = ", ".join(map(str, features.sources))
    f.add("note" if problems else "ok", f"{form} {shape} of {values}: {where}")
    f.add("note", *features.notes)
    f.names("note", table.index[table["zero"].astype(bool)], "video", "of nothing but zeros")
    for role, members in splits.items():
        missing = sorted(set(members) - set(videos))
        text = f"features of {len(members) - len(missing):,} of {many(len(members), f'{role} video')}"
        if len(missing) == len(members):
            f.add("error", f"{text} - files are found by the names in the annotations")
        else:
            f.add("note" if missing else "ok", text + f", left out: {some(missing)}" * bool(missing))
    f.names("note", features.unused(), "file", "not read (no annotated video, RGB without flow, or another file is)")
    if not sound:
        return {}
    names, snippets = list(sound), table["T"].to_numpy()
    f.add("ok", f"finite numbers in {many(len(names), 'video')}; T, in snippets, is {spread(snippets)}")
    duration_s = pd.Series(read.annotations.duration_s, read.annotations.videos)[names].to_numpy()
    rates = f.attempt(profile.rates, names, snippets, duration_s)
    if rates is None:
        return {}
    fit = check_rate(names, snippets, duration_s, profile)
    if fit and fit.problem:
        f.problems([fit.problem])
    elif fit:
        f.add("ok", fit.summary)
        f.names("note", fit.off, "video", "off by more than 2 snippets and 5 %")
    return dict(zip(names, (snippets + 1) / rates))


def check_instances(f: Findings, read: Read, longest_s: np.ndarray, profile: Profile) -> None:
    """Instances against their video. longest_s: float64 [V] seconds that each video can have, NaN if unknown."""
    instances, videos = read.instances, np.array(read.annotations.videos)
    (start_s, end_s), length_s = instances.segment_s.T, longest_s[instances.video]
    f.attempt(check_units, instances.segment_s, length_s, "instances")
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
        names = pd.unique(videos[instances.video[worst_first[bad[worst_first]]]])
        f.names("note", names, "video", f"with {many(int(bad.sum()), 'instance')} {text}")
    if len(end_s) and not any(bad.any() for bad, _ in kinds[1:]):
        f.add("ok", "every instance lies inside its video")
    if profile.round_ground_truth:
        truth = instances.keep(videos[read.annotations.of(profile.test_subset)].tolist())
        lines = rounding_lines(evaluate_detections(truth, truth.keep([]), profile))
        f.add("note", *(f"protocol wtal: {line}" for line in lines))


def check_proposals(f: Findings, role: str, videos: Sequence[str], path: Path, longest_s: Dict[str, float]) -> None:
    """The proposals of one split against its videos."""
    loaded = f.attempt(load_proposals, path, longest_s)
    if loaded is None:
        return
    f.problems(loaded.problems)
    mine = {v: loaded.segments_s[v] for v in videos if v in loaded.segments_s}
    if not mine:
        what = f"{role}: {path} has none for {many(len(videos), 'video')}"
        f.add("error", f"{what} - is it this split's, with the annotations' names?")
        return
    f.add("note" if loaded.problems else "ok", f"{role}: {path}, for {len(mine):,} of {many(len(videos), 'video')}")
    number, twice = [len(p) for p in mine.values()], duplicates(list(mine.values()))
    f.add("ok", f"{role}: {sum(number):,} ({spread(number)} a video), among them {many(twice, 'repeat')} of another")
    effect = "not trained on" if role == "train" else "nothing is detected in them"
    f.names("note", [v for v in videos if v not in mine], f"{role} video", f"without a proposal, {effect}")
    f.add("note", *loaded.notes)
    f.names("note", [v for v in loaded.segments_s if v not in mine], "video", f"of another subset in {path}, ignored")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command; returns the exit status, 2 with errors, else 0. Raises InputError without a dataset to look at."""
    parser = Parser(prog="python -m utils.tools.check", description=__doc__)
    for option in (option for part in OPTIONS.values() for option in part if option.name in DATA):
        add_option(parser, option)
    args = parser.parse_args(argv)
    name, root = args.dataset_name, dataset_root(args.dataset_name, args.dataset_root)
    profile, f = load_profile(name, root), Findings()
    fps, stride = profile.feature_fps, profile.snippet_stride
    rate = "a rate of its own for each video"
    if not profile.rescaled and not isinstance(fps, dict):
        rate = f"{many(fps, 'frame')} a second, {many(stride, 'frame')} a snippet, {stride / fps:.4g} s a snippet"
    print(f"{name} in {root}: {rate}\n")

    f.topic = "annotations"
    path = f.attempt(annotations_path, name, root, profile)
    read = path and f.attempt(read_annotations, path, profile)
    if not read:
        f.add("note", "features and proposals are checked against them, so not this time")
        return f.close()
    check_annotations(f, path, read, profile)
    annotations = read.annotations
    subsets = {"train": profile.train_subset, "test": profile.test_subset}
    splits = {role: [annotations.videos[i] for i in annotations.of(subset)] for role, subset in subsets.items()}
    splits = {role: videos for role, videos in splits.items() if videos}

    f.topic, by_t_s = "features", {}
    features = f.attempt(open_features, name, root, profile, annotations, args.feature_size)
    if features and f.attempt(lambda: features.layout):
        by_t_s = check_features(f, features, read, splits, profile)
    stated = np.isfinite(annotations.duration_s) & (annotations.duration_s > 0)
    longest_s = np.where(stated, annotations.duration_s, [by_t_s.get(v, np.nan) for v in annotations.videos])

    f.topic = "annotations"
    check_instances(f, read, longest_s, profile)

    f.topic, by_name_s = "proposals", dict(zip(annotations.videos, longest_s.tolist()))
    for role, videos in splits.items():
        check_proposals(f, role, videos, proposals_file(name, profile, role, args.proposals_root), by_name_s)
    return f.close()


if __name__ == "__main__":
    run_command(main)
