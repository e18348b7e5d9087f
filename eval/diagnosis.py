"""Why detections score what they score, in numbers: definitions of DETAD (Alwassel et al., ECCV 2018).

Throughout, A is the set of tIoU thresholds, G_c the number of instances of class c and N the mean of G_c over the
classes that have instances. The normalised precision of the best detections of a class, P_N = R N / (R N + FP), with
recall R and the number FP of false positives among them, does not depend on how frequent the class is; AP_N is
interpolated average precision with P_N in place of precision. Detections are matched as in mAP. Means run over the
classes that have instances and over A.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from eval.average_precision import Columns, average_precision, hits, interpolated, match, pairs
from eval.detection import comparable, in_protocol
from utils.datasets.profile import ACTIVITYNET_TIOU, THUMOS_TIOU, Profile
from utils.segments import Segments

KINDS = (
    "true positive",
    "double detection",
    "wrong label",
    "localisation error",
    "confusion",
    "background error",
)
FACTOR = 10  # the false-positive profile looks at the best FACTOR * G_c detections of a class
LEAST_TIOU = 0.1  # a detection that meets no instance so well is on the background
LEAST_PRECISION = 0.05  # an instance is found by detections above this normalised precision
OVERLAP = 0.5  # tIoU from which a detection counts in the confusion of classes
RECALLS = np.linspace(0, 1, 101)  # of the precision-recall curves
NAMES = ("XS", "S", "M", "L", "XL")  # of bins, as DETAD's
_THUMOS = {
    "coverage": (0, 0.02, 0.04, 0.06, 0.08, 1),
    "length": (0, 3, 6, 12, 18, np.inf),
    "instances": (0, 1, 40, 80, np.inf),
}
_ACTIVITYNET = {
    "coverage": (0, 0.2, 0.4, 0.6, 0.8, 1),
    "length": (0, 30, 60, 120, 180, np.inf),
    "instances": (0, 1, 4, 8, np.inf),
}
BINS = {"Thumos14reduced": _THUMOS, "ActivityNet1.2": _ACTIVITYNET, "ActivityNet1.3": _ACTIVITYNET}


def detad_tious(profile: Profile) -> Tuple[float, ...]:
    """DETAD's own thresholds: 0.5 where the profile has THUMOS14's, else 0.5:0.05:0.95."""
    return (0.5,) if np.array_equal(profile.tiou_thresholds, THUMOS_TIOU) else ACTIVITYNET_TIOU


def diagnose(
    truth: Segments,
    found: Segments,
    profile: Profile,
    protocol: str,
    duration_s: Mapping[str, float],
    bins: Optional[Mapping[str, Sequence[float]]] = None,
    tious: Optional[Sequence[float]] = None,
    proposals_s: Optional[Mapping[str, np.ndarray]] = None,
) -> Dict:
    """All numbers of the diagnosis of some detections, as fractions; NaN where there is nothing to measure.

    duration_s: seconds of each video; unknown where NaN or missing. bins: edges of each characteristic, one of
    ``BINS``; default quintiles. tious: A, default the profile's thresholds. proposals_s: video -> [M, 2] seconds, the
    proposals that were scored, for ``ceiling``. Keys: protocol, videos, instances, detections, classes, tiou, mAP [T],
    AP_N [T], mean_AP_N, class_AP {class: [T]}, false_positives, sensitivity, missed, confusion, curves and, with
    proposals, ceiling; each is described at its function. Raises ValueError for an unknown protocol or bad thresholds.
    """
    truth = in_protocol(truth, protocol)
    tious = list(profile.tiou_thresholds if tious is None else tious)
    instances, detections, score = comparable(truth, found, profile, protocol)
    case = matched(instances, detections, score, len(truth.classes), tious)
    values = characteristics(truth, duration_s)
    precision = interpolated(hits(case.rank, instances.label, case.num_class))
    ap = precision.sum(axis=2) / np.where(case.positives, case.positives, np.nan)
    numbers = {
        "protocol": protocol,
        "videos": len(truth.videos),
        "instances": len(instances.label),
        "detections": len(score),
        "classes": list(truth.classes),
        "tiou": tious,
        "mAP": mean(ap, axis=1),
        "AP_N": mean(case.normalised(), axis=1),
        "mean_AP_N": mean(case.normalised()),
        "class_AP": {truth.classes[c]: ap[:, c] for c in np.flatnonzero(case.positives)},
        "missed": 1 - mean(case.findable()),
        "false_positives": false_positives(case),
        "sensitivity": sensitivity(case, values, bins or {}),
        "confusion": confusion(case),
        "curves": {"recall": RECALLS, "precision": curves(case, precision, truth.classes)},
    }
    if proposals_s is not None:
        numbers["ceiling"] = ceiling(truth, proposals_s, profile, protocol, tious)
    return numbers


def mean(values: np.ndarray, axis: Optional[int] = None) -> np.ndarray:
    """Mean of what is not NaN, NaN where there is nothing."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    return np.where(known, values, 0).sum(axis=axis) / np.where(count, count, np.nan)


class Matched(NamedTuple):
    """Detections by class and falling score, which instances they take, and which they are nearest to.

    g* is the instance of highest tIoU in the detection's video, whatever its class; of equal tIoUs one of the
    detection's own class, else the later one.
    """

    truth: Columns  # G instances
    found: Columns  # N detections in that order
    num_class: int
    tious: np.ndarray  # [T]
    rank: np.ndarray  # float64 [T, G], as from ``match``
    begin: np.ndarray  # int64 [C], first detection of each class
    positives: np.ndarray  # int64 [C], G_c
    average: float  # N of the module's head
    u: np.ndarray  # float64 [N], tIoU of g*; 0 below LEAST_TIOU
    meets: np.ndarray  # int64 [N], class of g*; -1 below LEAST_TIOU

    def normalised(self, rank: Optional[np.ndarray] = None, mine: Optional[np.ndarray] = None) -> np.ndarray:
        """AP_N, float64 [T, C], NaN for classes without instances.

        rank: other ranks than the matching's. mine: bool [G], the instances that count, default all; R is their recall.
        """
        mine = np.ones(len(self.truth.label), bool) if mine is None else mine
        label, rank = self.truth.label[mine], (self.rank if rank is None else rank)[:, mine]
        number = np.bincount(label, minlength=self.num_class)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = interpolated(hits(rank, label, self.num_class), self.average / number)
            return np.nan_to_num(precision).sum(axis=2) / np.where(number, number, np.nan)[:, 0]

    def findable(self) -> np.ndarray:
        """float64 [T, G]: 1 for instances found by a detection whose P_N, interpolated, reaches LEAST_PRECISION."""
        rising = hits(self.rank, self.truth.label, self.num_class)
        with np.errstate(divide="ignore", invalid="ignore"):
            precise = interpolated(rising, (self.average / self.positives)[:, None]) >= LEAST_PRECISION
        last = np.where(precise & (rising < np.inf), rising, -1).max(axis=2, initial=-1)
        return (self.rank <= last[:, self.truth.label]).astype(float)

    def takers(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(threshold, instance, detection) of every true positive."""
        level, instance = np.nonzero(self.rank < np.inf)
        return level, instance, self.begin[self.truth.label[instance]] + self.rank[level, instance].astype(np.int64)

    def without(self, removed: np.ndarray) -> np.ndarray:
        """Ranks [T, G] after some false positives are gone. removed: bool [T, N]."""
        before = np.zeros((len(self.tious), len(self.found.label) + 1), dtype=np.int32)
        np.cumsum(removed, axis=1, out=before[:, 1:])
        level, instance, detection = self.takers()
        rank = self.rank.copy()
        rank[level, instance] -= before[level, detection] - before[level, self.begin[self.truth.label[instance]]]
        return rank


def matched(truth: Columns, found: Columns, score: np.ndarray, num_class: int, tious: Sequence[float]) -> Matched:
    """Match detections with instances as mAP does; arguments and errors as in ``average_precision.match``."""
    order, rank = match(truth, found, score, num_class, tious)
    found = Columns(*(column[order] for column in found))
    begin = np.searchsorted(found.label, np.arange(num_class))
    positives = np.bincount(truth.label, minlength=num_class)
    average = len(truth.label) / max(1, np.count_nonzero(positives))
    u, meets = _nearest(truth, found)
    return Matched(truth, found, num_class, np.asarray(tious), rank, begin, positives, average, u, meets)


def _nearest(truth: Columns, found: Columns) -> Tuple[np.ndarray, np.ndarray]:
    detection, instance, tiou = pairs(truth.video, truth.segment, found.video, found.segment, LEAST_TIOU)
    label = truth.label[instance]
    order = np.lexsort((label != found.label[detection], -tiou, detection))  # stable: of equals the later one first
    order = order[tiou[order] >= LEAST_TIOU]
    first = order[np.flatnonzero(np.diff(detection[order], prepend=-1))]
    u, meets = np.zeros(len(found.label)), np.full(len(found.label), -1)
    u[detection[first]], meets[detection[first]] = tiou[first], label[first]
    return u, meets


def kinds(case: Matched) -> np.ndarray:
    """Index into KINDS of every detection at every threshold, int8 [T, N].

    A detection that takes an instance is a true positive. For the others, with g* of tIoU u: u >= a, a double detection
    where g* has the detection's class, else a wrong label; 0.1 <= u < a, a localisation error or a confusion;
    u < 0.1, a background error.
    """
    kind = np.where(case.u >= case.tious[:, None], 1, 3) + (case.meets != case.found.label)
    kind = np.where(case.u >= LEAST_TIOU, kind, 5).astype(np.int8)
    level, _, detection = case.takers()
    kind[level, detection] = 0
    return kind


def false_positives(case: Matched) -> Dict:
    """The false-positive profile: what the best FACTOR * G_c detections of each class are.

    profile: [FACTOR][kind], fractions of the detections of rank (k - 1) G_c … k G_c of all classes, mean over A.
    AP_N: of these detections alone. gain: {kind: what AP_N would gain without its false positives}.
    """
    label = case.found.label
    place = np.arange(len(label)) - case.begin[label]
    slot = place // np.maximum(case.positives[label], 1)
    seen = (slot < FACTOR) & (case.positives[label] > 0)
    kind = kinds(case)
    count = [np.bincount(slot[seen], row[seen] == k, FACTOR) for k in range(len(KINDS)) for row in kind]
    count = np.reshape(count, (len(KINDS), -1, FACTOR)).sum(axis=1).T
    total = count.sum(axis=1, keepdims=True)
    limit = (FACTOR * case.positives)[case.truth.label]
    best = case._replace(rank=np.where(case.rank < limit, case.rank, np.inf))
    base = mean(best.normalised())
    gain = {KINDS[k]: mean(best.normalised(best.without(kind == k))) - base for k in range(1, len(KINDS))}
    return {"kinds": list(KINDS), "profile": count / np.where(total, total, np.nan), "AP_N": base, "gain": gain}


def characteristics(truth: Segments, duration_s: Mapping[str, float]) -> Dict[str, np.ndarray]:
    """Of each instance [G]: coverage (length / duration of the video, at most 1, NaN where unknown), length in seconds,
    and instances, the number of its class in its video."""
    length = truth.segment_s[:, 1] - truth.segment_s[:, 0]
    duration = np.asarray([duration_s.get(video, np.nan) for video in truth.videos], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        coverage = np.minimum(length / np.where(duration > 0, duration, np.nan)[truth.video], 1)
    _, key, number = np.unique(truth.video * len(truth.classes) + truth.label, return_inverse=True, return_counts=True)
    return {"coverage": coverage, "length": length, "instances": number[key].astype(float)}


def sensitivity(
    case: Matched, values: Mapping[str, np.ndarray], bins: Mapping[str, Sequence[float]]
) -> Dict[str, Dict]:
    """AP_N and false negatives by the characteristics of instances: {characteristic: …}.

    values: characteristic -> float64 [G]. bins: characteristic -> edges, default quintiles; bins are closed on the
    right. Each has "bins": a list of {"name", "above", "up_to", "instances", "share" of all instances, "AP_N" of the
    bin's instances, where detections that take another bin's at that threshold are left out, "missed": the share that
    no detection of P_N >= LEAST_PRECISION finds}; and "lowest", "highest": the least and greatest AP_N over the base.
    """
    base, found = mean(case.normalised()), case.findable()
    level, instance, detection = case.takers()
    result = {}
    for name, value in values.items():
        known = ~np.isnan(value)
        edges = bins.get(name)
        if edges is None:
            edges = np.unique(np.quantile(value[known] if known.any() else 0.0, np.linspace(0, 1, 6)))
            edges = np.repeat(edges, 2) if len(edges) == 1 else edges
        place = np.where(known, np.searchsorted(edges[1:-1], value, side="left"), -1)
        rows: List[Dict] = []
        for k in range(len(edges) - 1):
            mine = place == k
            removed = np.zeros((len(case.tious), len(case.found.label)), dtype=bool)
            others = ~mine[instance]
            removed[level[others], detection[others]] = True
            rows.append(
                {
                    "name": NAMES[k],
                    "above": edges[k],
                    "up_to": edges[k + 1],
                    "instances": int(mine.sum()),
                    "share": mine.sum() / max(len(mine), 1),
                    "AP_N": mean(case.normalised(case.without(removed), mine)),
                    "missed": 1 - mean(found[:, mine]),
                }
            )
        ap = [row["AP_N"] for row in rows if row["instances"]] or [np.nan]
        lowest, highest = (f(ap) / base if base > 0 else np.nan for f in (min, max))
        result[name] = {"bins": rows, "lowest": lowest, "highest": highest}
    return result


def confusion(case: Matched) -> np.ndarray:
    """float64 [C, C]: share of the detections of a class (row) whose g* has u >= OVERLAP, by class of g* (column).

    NaN in the row of a class without such detections.
    """
    near = case.u >= OVERLAP
    pair = case.found.label[near] * case.num_class + case.meets[near]
    count = np.bincount(pair, minlength=case.num_class**2).reshape(case.num_class, -1)
    total = count.sum(axis=1, keepdims=True)
    return count / np.where(total, total, np.nan)


def curves(case: Matched, precision: np.ndarray, classes: Sequence[str]) -> Dict[str, np.ndarray]:
    """Class -> float64 [T, len(RECALLS)], interpolated precision (the ordinary one) at each recall."""
    result = {}
    for c in np.flatnonzero(case.positives):
        slot = np.maximum(np.ceil(RECALLS * case.positives[c] - 1e-9).astype(int) - 1, 0)
        result[classes[c]] = np.round(precision[:, c, slot], 4)
    return result


def ceiling(
    truth: Segments, proposals_s: Mapping[str, np.ndarray], profile: Profile, protocol: str, tious: Sequence[float]
) -> Dict:
    """What a scoring that knew the truth would reach with the same proposals: mAP [T] and average of two scorings.

    scored: every proposal gets its highest tIoU with the instances of each class of its video; what the proposals lose
    is the rest to 1. single: of these, each instance keeps the best proposal that is free, as a perfect suppression
    of doubles would.
    """
    given = [(v, proposals_s[name]) for v, name in enumerate(truth.videos) if len(proposals_s.get(name, ()))]
    video = np.repeat([v for v, _ in given], [len(p) for _, p in given]).astype(np.int64)
    segment_s = np.concatenate([np.zeros((0, 2)), *(p for _, p in given)])
    everything = Segments(truth.classes, truth.videos, video, segment_s, np.zeros(len(video), dtype=np.int64))
    instances, found, _ = comparable(truth, everything, profile, protocol)
    proposal, instance, tiou = pairs(instances.video, instances.segment, found.video, found.segment, 1e-9)
    classes = len(truth.classes)
    _, best = np.unique(proposal * classes + instances.label[instance], return_index=True)  # pairs come best first
    proposal, label, score = proposal[best], instances.label[instance[best]], tiou[best]
    scored = Columns(found.video[proposal], found.segment[proposal], label)
    order, rank = match(instances, scored, score, classes, [1e-9])
    begin = np.searchsorted(label[order], np.arange(classes))
    taken = rank[0] < np.inf
    single = order[begin[instances.label[taken]] + rank[0, taken].astype(np.int64)]
    result = {}
    for name, chosen in (("scored", slice(None)), ("single", single)):
        detections = Columns(*(column[chosen] for column in scored))
        value = mean(average_precision(instances, detections, score[chosen], classes, tious), axis=1)
        result[name] = {"mAP": value, "average": mean(value)}
    return result
