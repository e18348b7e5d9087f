"""Annotations checked: form, subsets, class balance, weak labels against instances, instances against their video."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

import numpy as np

from utils.annotations import Annotations, Instances, read_ambiguous, read_instances, read_weak_labels
from utils.errors import InputError
from utils.findings import Findings, attempt, many
from utils.profile import Profile, annotations_path
from utils.report import some

EDGE_S = 0.01  # an instance may end so much beyond its video: both are rounded


def check_annotations(
    findings: Findings, name: str, root: Path, profile: Profile
) -> Tuple[Optional[Annotations], Optional[Instances]]:
    """Check all that needs annotations alone; None for what cannot be read."""
    problems: List[InputError] = []
    path = attempt(problems, annotations_path, name, root, profile)
    annotations = path and attempt(problems, read_weak_labels, path, problems.append)
    instances = annotations and attempt(problems, read_instances, path, annotations, problems.append)
    ambiguous = path and (path if path.is_dir() else root) / "Ambiguous_test.txt"
    ambiguous_s = annotations and attempt(problems, read_ambiguous, ambiguous, annotations.videos)
    findings.problems("annotations", problems)
    if annotations is None:
        return None, None
    form = "W-TALC's files" if path.is_dir() else "a CSV" if path.suffix.lower() == ".csv" else "ActivityNet's JSON"
    counts = f"{many(len(annotations.videos), 'video')}, {many(len(annotations.classes), 'class')}"
    if instances is not None:
        counts += f", {many(len(instances.video), 'instance')}"
    findings.add("note" if problems else "ok", "annotations", f"{form} in {path}: {counts}")
    if profile.train_subset == profile.test_subset:
        what = f"train_subset and test_subset are both {profile.test_subset!r}: every test video is trained on"
        findings.add("note", "annotations", f"{what}, results say nothing about new ones")
    for role, subset in subsets(profile):
        _check_labels(findings, annotations, role, subset)
    others = Counter(s for s in annotations.subset if s not in (profile.train_subset, profile.test_subset))
    for subset, count in others.items():
        findings.add("note", "annotations", f"{many(count, 'video')} of subset {subset!r}, not used")
    strange = sorted(set(profile.excluded_videos) - set(annotations.videos))
    if strange:
        findings.add(
            "note",
            "annotations",
            f"{many(len(strange), 'name')} in excluded_videos but not in the annotations: {some(strange)}",
        )
    _check_durations(findings, annotations)
    if instances is not None:
        _check_weak_labels(findings, annotations, instances, profile)
    if ambiguous_s:
        count = sum(map(len, ambiguous_s.values()))
        findings.add("ok", "annotations", f"{many(count, 'ambiguous interval')} in {many(len(ambiguous_s), 'video')}")
    return annotations, instances


def subsets(profile: Profile) -> Tuple[Tuple[str, str], Tuple[str, str]]:
    """What a subset is for, and its name."""
    return ("train", profile.train_subset), ("test", profile.test_subset)


def _check_labels(findings: Findings, annotations: Annotations, role: str, subset: str) -> None:
    members, classes = annotations.of(subset), annotations.classes
    if not len(members):
        todo = f"name {role}_subset in dataset.json, one of {sorted(set(annotations.subset))}"
        findings.add("error", "annotations", f"no {role} video: none is of subset {subset!r} - {todo}")
        return
    labels = np.asarray([c for i in members for c in annotations.labels[i]], dtype=np.int64)
    count = np.bincount(labels, minlength=len(classes))
    least, most = int(count.argmin()), int(count.argmax())
    balance = f"min {count[least]} ({classes[least]}), median {np.median(count):g}, max {count[most]} ({classes[most]})"
    findings.add(
        "ok", "annotations", f"{role} is {subset!r}: {many(len(members), 'video')}; videos of a class: {balance}"
    )
    absent = [classes[c] for c in np.flatnonzero(count == 0)]
    if absent and role == "train":
        todo = "label some, or take them out of the class list: no descriptor can be made of them, Eq. (1)-(4)"
        findings.add("error", "annotations", f"classes without a train video: {some(absent)} - {todo}")
    elif absent:
        findings.add("note", "annotations", f"classes without a test video: {some(absent)}")
    bare = [annotations.videos[i] for i in members if not annotations.labels[i]]
    if bare:
        effect = ", trained as background" if role == "train" else ""
        findings.add("note", "annotations", f"{many(len(bare), f'{role} video')} without a label{effect}: {some(bare)}")


def _check_durations(findings: Findings, annotations: Annotations) -> None:
    wrong = [v for v, s in zip(annotations.videos, annotations.duration_s) if s <= 0 or np.isinf(s)]
    if wrong:
        todo = "give seconds, or leave them out"
        findings.add("error", "annotations", f"{many(len(wrong), 'duration')} that cannot be: {some(wrong)} - {todo}")
    unknown = int(np.isnan(annotations.duration_s).sum())
    if unknown:
        findings.add(
            "note", "annotations", f"{many(unknown, 'video')} without a duration: T * stride / fps stands in for it"
        )


def _check_weak_labels(findings: Findings, annotations: Annotations, instances: Instances, profile: Profile) -> None:
    weak = {(i, c) for i, labels in enumerate(annotations.labels) for c in labels}
    strong = set(zip(instances.video.tolist(), instances.label.tolist()))
    timed = {i for i, _ in strong}
    differ = [annotations.videos[i] for i in sorted({i for i, _ in weak ^ strong} & timed)]
    if differ:
        what = f"{many(len(differ), 'video')} with a weak label other than the set of instance classes"
        findings.add("note", "annotations", f"{what} (training reads the weak label): {some(differ)}")
    bare = [annotations.videos[i] for i in annotations.of(profile.test_subset) if i not in timed]
    if bare:
        findings.add("note", "annotations", f"{many(len(bare), 'test video')} without an instance: {some(bare)}")


def check_instances(
    findings: Findings,
    annotations: Annotations,
    instances: Instances,
    length: Mapping[str, int],
    snippets_per_second: float,
) -> None:
    """Instances against their video: its duration or, where that is not known, its T snippets.

    length: T of the videos whose features are sound; a last, partial snippet that has no row may follow them.
    """
    stated = np.isfinite(annotations.duration_s) & (annotations.duration_s > 0)
    by_t_s = [(length[v] + 1) / snippets_per_second if v in length else np.nan for v in annotations.videos]
    longest_s = np.where(stated, annotations.duration_s, by_t_s)[instances.video]
    start_s, end_s = instances.segment_s.T
    unknown, stated = np.isnan(longest_s), stated[instances.video]
    over_s = np.where(unknown, -np.inf, end_s - longest_s)
    repeats = np.ones(len(end_s), dtype=bool)
    repeats[np.unique(np.c_[instances.video, instances.label, instances.segment_s], axis=0, return_index=True)[1]] = (
        False
    )
    beyond = f"with the end beyond the video, by up to {over_s.max(initial=0):.2f} s"
    rate = " - no duration is stated: are feature_fps and snippet_stride right?"
    worst_first = np.argsort(-over_s, kind="stable")
    kinds = (
        ("error", start_s < 0, "with a start below 0", " - times are seconds from its start"),
        ("note", end_s == start_s, "with no length, which no detection can match", ""),
        ("note", over_s > EDGE_S, beyond, rate if (over_s > EDGE_S)[~stated].any() else ""),
        ("note", unknown, "of unknown length, not checked against it", ""),
    )
    for level, bad, what, todo in (*kinds, ("note", repeats, "repeating another, each counted", "")):
        if bad.any():
            rows = worst_first[bad[worst_first]]
            videos = list(dict.fromkeys(annotations.videos[i] for i in instances.video[rows]))
            text = f"{many(int(bad.sum()), 'instance')} in {many(len(videos), 'video')} {what}: {some(videos)}{todo}"
            findings.add(level, "annotations", text)
    if len(end_s) and not any(bad.any() for _, bad, _, _ in kinds):
        findings.add("ok", "annotations", "every instance lies inside its video")
