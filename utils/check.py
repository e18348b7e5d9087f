"""Everything that can be wrong with a dataset, found in one pass over its files: ``python dataset.py check``.

Annotations first, then features and proposals against them. One video is in memory at a time, but for a joint array.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
from tqdm import tqdm

from utils.annotations import Annotations
from utils.check_annotations import check_annotations, check_instances, subsets
from utils.errors import InputError
from utils.features import Features
from utils.findings import Findings, attempt, many
from utils.profile import Profile, proposals_file
from utils.report import some

Proposals = Dict[str, np.ndarray]  # video -> [M, 2] seconds


def check_dataset(
    name: str,
    root: Path,
    profile: Profile,
    open_features: Callable[[Annotations], Features],
    load_proposals: Callable[..., Tuple[Proposals, Any]],
    proposals_root: Optional[str] = None,
    write: Callable[[str], None] = print,
) -> int:
    """Check a whole dataset and write what is found; returns the exit status, 2 with errors, else 0.

    load_proposals: proposals.load_proposals, which this module may not import.
    """
    findings, rate = Findings(write), profile.snippets_per_second
    stated = f"{many(profile.feature_fps, 'frame')} a second, {many(profile.snippet_stride, 'frame')} a snippet"
    write(f"{name} in {root}: {stated}, {1 / rate:.4g} s a snippet\n")
    annotations, instances = check_annotations(findings, name, root, profile)
    if annotations is None:
        findings.add("note", "annotations", "features and proposals are checked against them, so not this time")
        return findings.close()
    length = check_features(findings, open_features, annotations, profile)
    if instances is not None:
        check_instances(findings, annotations, instances, length, rate)
    for role, subset in subsets(profile):
        path = proposals_file(name, profile, role, proposals_root)
        check_proposals(findings, role, subset, path, load_proposals, annotations, length, rate)
    return findings.close()


def check_features(
    findings: Findings, open_features: Callable[[Annotations], Features], annotations: Annotations, profile: Profile
) -> Dict[str, int]:
    """Read every video once; video -> T of those that are sound."""
    problems: List[InputError] = []
    features = attempt(problems, open_features, annotations)
    if features and features.simulated:
        findings.add("note", "features", f"SIMULATED: results say nothing about real videos, see {features.simulated}")
    layout = features and attempt(problems, lambda: features.layout)
    if layout is None:
        findings.problems("features", problems)
        return {}
    length, kinds, still = {}, Counter(), []
    for video in tqdm(features.videos, "reading features", unit="video", disable=None, leave=False):
        array = attempt(problems, features.read, video)
        sound = None if array is None else attempt(problems, features.sound, video, array)
        if sound is not None:
            length[video] = len(sound)
            kinds[array.dtype.name] += 1
            still += [] if sound.any() else [video]
    features.release()
    findings.problems("features", problems)
    findings.add("note" if problems else "ok", "features", _form(features, layout, kinds))
    if layout[0] % 2:
        findings.add("error", "features", f"the width {layout[0]} is odd - RGB and flow need one width, RGB first")
    if still:
        findings.add("note", "features", f"{many(len(still), 'video')} of nothing but zeros: {some(still)}")
    featured = set(features.videos)
    for role, subset in subsets(profile):
        members = [annotations.videos[i] for i in annotations.of(subset)]
        missing = [v for v in members if v not in featured]
        have = "has" if len(members) == 1 else "have"
        text = f"{len(members) - len(missing):,} of {many(len(members), f'{role} video')} {have} features"
        if len(missing) == len(members) > 0:
            findings.add("error", "features", f"{text} - files are found by the names in the annotations")
        elif missing:
            findings.add("note", "features", f"{text}, left out are {some(missing)}")
        else:
            findings.add("ok", "features", text)
    _check_unused(findings, features, annotations)
    if length:
        snippets = list(length.values())
        spread = f"min {min(snippets):,}, median {np.median(snippets):g}, max {max(snippets):,}"
        findings.add("ok", "features", f"finite numbers in {many(len(snippets), 'video')}; T, in snippets, is {spread}")
        check_rate(findings, length, dict(zip(annotations.videos, annotations.duration_s.tolist())), profile)
    return length


def _check_unused(findings: Findings, features: Features, annotations: Annotations) -> None:
    """Name the files that are not read, by the reason."""
    read, annotated = (set(map(_bare, videos)) for videos in (features.videos, annotations.videos))
    reasons: Dict[str, List[str]] = {}
    for file in features.unused():
        video = _bare(Path(file).stem)
        if video in read:
            reason = "not read: another one of the same video is"
        else:
            reason = "not read: RGB or flow of that video is missing" if video in annotated else "of no annotated video"
        reasons.setdefault(reason, []).append(file)
    for reason, files in reasons.items():
        findings.add("note", "features", f"{many(len(files), 'file')} {reason}: {some(files)}")


def _bare(video: str) -> str:
    """The name of a video without the v_ under which its file may stand."""
    return video[2:] if video.startswith("v_") else video


def _form(features: Features, layout: Tuple[int, bool], kinds: Mapping[str, int]) -> str:
    (size, transposed), parts = layout, len(features.sources)
    form = "a joint array" if features.sources[0].is_file() else "files" if parts == 1 else "RGB and flow files"
    shape = f"[{size // parts}, T]" if transposed else f"[T, {size // parts}]"
    values = " and ".join(f"{kind} ({count:,})" if len(kinds) > 1 else kind for kind, count in kinds.items())
    return f"{form} {shape} of {values or 'nothing that can be used'}: {', '.join(map(str, features.sources))}"


def check_rate(
    findings: Findings, length: Mapping[str, int], duration_s: Mapping[str, float], profile: Profile
) -> None:
    """Durations against T * stride / fps; what would fit, where nearly all are off by one factor."""
    videos = [v for v in length if 0 < duration_s[v] < np.inf]
    if not videos:
        return
    frames = np.asarray([length[v] for v in videos], dtype=np.float64)
    expected = np.asarray([duration_s[v] for v in videos]) * profile.snippets_per_second
    ratio = expected / frames
    factor = float(np.median(ratio))
    off, still_off = (np.abs(frames * f - expected) > np.maximum(2 * f, 0.05 * expected) for f in (1, factor))
    spread = f"min {ratio.min():.3f}, median {factor:.3f}, max {ratio.max():.3f}"
    text = f"duration / (T * stride / fps), which should be 1, is {spread}"
    if off.mean() <= 0.5:
        findings.add("ok", "features", text)
        worst = [i for i in np.argsort(-np.abs(np.log(ratio)), kind="stable") if off[i]]
        if worst:
            names = [f"{videos[i]} (T {frames[i]:g}, {expected[i]:.0f} by duration)" for i in worst]
            what = f"{many(len(worst), 'video')} off by more than 2 snippets or 5 %"
            findings.add("note", "features", f"{what}: {some(names, 3)}")
        return
    if still_off.mean() <= 0.1:
        exact = float(expected[~still_off].sum() / frames[~still_off].sum())  # long videos tell it best
        values = {"feature_fps": profile.feature_fps / exact, "snippet_stride": profile.snippet_stride * exact}
        near = {field: round(v) if abs(v - round(v)) < 0.005 * v else v for field, v in values.items()}
        todo = " or ".join(f'"{field}": {value:.4g}' for field, value in near.items()) + " in dataset.json would fit"
    elif len(set(length.values())) == 1:
        todo = "features rescaled to one length have no stride: extract them at one"
    else:
        todo = "no one rate fits: are features and annotations of the same videos?"
    are = "is" if len(videos) == 1 else "are"
    findings.add("error", "features", f"{text}, {off.sum():,} of {many(len(videos), 'video')} {are} off - {todo}")


def check_proposals(
    findings: Findings,
    role: str,
    subset: str,
    path: Path,
    load_proposals: Callable[..., Tuple[Proposals, Any]],
    annotations: Annotations,
    length: Mapping[str, int],
    rate: float,
) -> None:
    """The proposals of one split against its videos, and against T where features are known."""
    problems: List[InputError] = []
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    loaded = attempt(problems, load_proposals, path, duration_s, False, problems.append)
    findings.problems("proposals", problems)
    if loaded is None:
        return
    found, counts = loaded
    videos = [annotations.videos[i] for i in annotations.of(subset)]
    mine = {v: found[v] for v in videos if v in found}
    if videos and not mine:
        what = f"{role}: {path} has none for {many(len(videos), 'video')}"
        text = f"{what} - is it this split's, with the annotations' names?"
        findings.add("error", "proposals", text)
        return
    number = [len(p) for p in mine.values()] or [0]
    twice = sum(len(p) - len(np.unique(p, axis=0)) for p in mine.values())
    spread = f"min {min(number)}, median {np.median(number):g}, max {max(number):,} a video"
    level = "note" if problems else "ok"
    findings.add(level, "proposals", f"{role}: {path}, for {len(mine):,} of {many(len(videos), 'video')}")
    findings.add(
        "ok",
        "proposals",
        f"{role}: {sum(number):,} ({spread}), {twice:,} of them {'repeats' if twice == 1 else 'repeat'} another",
    )
    without = [v for v in videos if v not in mine]
    others = [v for v in found if v not in mine]
    effect = "not trained on" if role == "train" else "nothing is detected in them"
    for names, what, then in (
        (without, "without a proposal", effect),
        (counts.unknown, "not annotated", "passed over"),
        (others, "of another subset", "passed over"),
    ):
        if names:
            findings.add("note", "proposals", f"{role}: {many(len(names), 'video')} {what}, {then}: {some(names)}")
    ends = {v: p[:, 1] * rate - length[v] for v, p in mine.items() if v in length}
    for level, stated in (("note", True), ("error", False)):
        over = {v: e[e > 1] for v, e in ends.items() if np.isfinite(duration_s[v]) == stated and (e > 1).any()}
        if over:
            what = f"{many(sum(map(len, over.values())), 'proposal')} in {many(len(over), 'video')} beyond T"
            by = f"by up to {max(e.max() for e in over.values()):.1f} snippets"
            todo = "" if stated else " - proposals and features must share feature_fps and snippet_stride"
            findings.add(level, "proposals", f"{role}: {what}, {by}: {some(list(over))}{todo}")
