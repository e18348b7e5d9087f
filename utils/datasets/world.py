"""What a simulated video is made of: instances, events, two-stream features, proposals. No file is touched here.

A video is a sum of events in time, each with a prototype and a strength in either modality: actions with weak, ramped
boundaries and a discriminative core that is shorter than they are; the scene, which goes with the class and is no
action; the class standing still around its actions; bursts of any class in one modality alone. Pairs of classes share
most of their appearance or of their motion. On top lie an offset per video and noise that is correlated in time and
partly points along the class prototypes; a ReLU makes all of it non-negative, as the pooled features of I3D are.

Times are in snippets here, except for proposals. The numbers in the code are strengths against noise of about 1, chosen
by trial such that a network trained with video-level labels is clearly better than chance and far from perfect.
"""

from __future__ import annotations

import hashlib
from typing import List, NamedTuple, Tuple

import numpy as np

from utils.segments import tiou

NUISANCE = 16  # directions of the correlated noise
ALIKE = 0.8  # share of the variance that the two classes of a pair have in common in one modality


class World(NamedTuple):
    """What all videos share, once for each modality (appearance, motion); C classes, width D."""

    prototypes: Tuple[np.ndarray, np.ndarray]  # float32 [3C, D]: C classes, C cores of classes, C scenes
    nuisance: Tuple[np.ndarray, np.ndarray]  # float32 [NUISANCE, D]
    bias: Tuple[np.ndarray, np.ndarray]  # float32 [D]


class Events(NamedTuple):
    """What happens in one video, times in snippets."""

    start: np.ndarray  # [E]
    end: np.ndarray  # [E]
    ramp: np.ndarray  # [E] length of the rise and of the fall
    row: np.ndarray  # int64 [E], row of World.prototypes
    gain: np.ndarray  # [E, 2] strength in appearance and motion
    distractor: np.ndarray  # bool [E], looks or moves like a class for a while and is none of its instances


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on ``seed`` and ``names`` alone, so that a video never depends on the others."""
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest, "big")]))


def make_world(seed: int, num_class: int, width: int) -> World:
    """Prototypes of ``num_class`` classes with ``width`` values in each modality.

    Classes 0 and 1 look alike, 2 and 3 move alike, 4 and 5 look alike, and so on; a pair also shares its scene.
    """
    rng = generator(seed, "world")
    prototypes, nuisance, bias = [], [], []
    pair, twin = np.arange(num_class) // 2, np.arange(num_class) // 2 * 2
    for modality in range(2):
        classes, cores, scenes = rng.standard_normal((3, num_class, width))
        alike = pair % 2 == modality
        classes[alike] = np.sqrt(ALIKE) * classes[twin[alike]] + np.sqrt(1 - ALIKE) * classes[alike]
        scenes = scenes[pair] * (1.0, 0.5)[modality]  # mostly appearance; its motion is the camera's
        mix = rng.standard_normal((NUISANCE, num_class)) / np.sqrt(num_class)
        noise = (mix @ classes + rng.standard_normal((NUISANCE, width))) / np.sqrt(NUISANCE)
        prototypes.append(np.concatenate([classes, cores, scenes]).astype(np.float32))
        nuisance.append(noise.astype(np.float32))
        bias.append(rng.normal(-0.3, 0.3, width).astype(np.float32))
    return World(tuple(prototypes), tuple(nuisance), tuple(bias))


def make_instances(rng: np.random.Generator, length: int, num_class: int) -> Tuple[np.ndarray, np.ndarray]:
    """Action instances [n, 2] of a video of ``length`` snippets, apart from each other, and their classes [n].

    A fifth of the videos has two classes.
    """
    classes = rng.choice(num_class, size=1 + int(rng.random() < 0.2), replace=False)
    count = max(len(classes), rng.poisson(length / 20))
    span = np.exp(rng.normal(np.log(9), 0.5, count)).clip(3, 40)
    span *= min(1.0, 0.6 * length / span.sum())
    gap = rng.dirichlet(np.ones(count + 1)) * (length - span.sum())
    end = np.cumsum(gap[:-1] + span)
    label = np.concatenate([classes, rng.choice(classes, size=count - len(classes))])
    return np.stack([end - span, end], axis=1), rng.permutation(label)


def make_events(
    rng: np.random.Generator, length: int, segments: np.ndarray, label: np.ndarray, num_class: int
) -> Events:
    """Draw what happens in ``length`` snippets with instances ``segments`` [n, 2] of classes ``label`` [n]."""
    rows: List[Tuple[float, ...]] = []

    def add(start, span, ramp, row, appearance, motion, distractor=False):
        rows.append((start, start + span, max(ramp, 1.0), row, appearance, motion, distractor))

    present = np.unique(label) if len(label) else rng.integers(num_class, size=1)
    for c in present:
        scene = rng.integers(num_class) if rng.random() < 0.25 else c
        strength = rng.uniform(0.5, 1.1)
        add(-9, length + 18, 1, 2 * num_class + scene, strength, strength)
        add(-9, length + 18, 1, c, rng.uniform(0, 0.3), 0)
        for _ in range(rng.poisson(length / 60)):  # the class stands still: looks like it, does not move
            span = rng.uniform(4, 16)
            add(rng.uniform(-2, length), span, span / 4, c, rng.uniform(0.45, 1.05), rng.uniform(0, 0.2), True)
    for (start, end), c in zip(segments, label):
        span, strength = end - start, rng.uniform(0.6, 1.1)
        add(start, span, span * rng.uniform(0.2, 0.5), c, 0.8 * strength, 0.8 * strength)
        core = span * rng.uniform(0.25, 0.5)
        begin = start + rng.uniform(0.1, 0.9) * (span - core)
        for row, gain in ((c, 0.3 * strength), (num_class + c, 0.4 * strength)):
            add(begin, core, core / 3, row, gain, gain)
    for _ in range(rng.poisson(length / 30)):  # a burst of some class in one modality without the other
        span, strength = rng.uniform(3, 16), rng.uniform(0.6, 1.2)
        gains = rng.permutation([strength, strength * rng.uniform(0, 0.25)])
        add(rng.uniform(-2, length), span, span / 4, rng.integers(num_class), *gains, True)
    start, end, ramp, row, appearance, motion, distractor = np.array(rows, dtype=np.float64).T
    gain = np.stack([appearance, motion], axis=1)
    return Events(start, end, ramp, row.astype(np.int64), gain, distractor.astype(bool))


def make_features(rng: np.random.Generator, length: int, events: Events, world: World) -> np.ndarray:
    """Simulated features, float32 [T = length, 2D], appearance first, motion second, non-negative."""
    centre = np.arange(length) + 0.5
    start, end, ramp = (a[:, None] for a in (events.start, events.end, events.ramp))
    profile = np.clip(np.minimum(centre - start, end - centre) / ramp + 0.5, 0, 1)  # [E, T]
    halves = []
    for modality in range(2):
        prototypes, nuisance, bias = (part[modality] for part in world)
        x = (profile * events.gain[:, modality, None]).T.astype(np.float32) @ prototypes[events.row]
        x += 0.65 * sum(_smooth_noise(rng, length, window) for window in (24, 4)) @ nuisance
        x += bias + rng.normal(0, 0.3, bias.shape).astype(np.float32)  # the camera and the light of this video
        x += 0.35 * rng.standard_normal(x.shape, dtype=np.float32)
        halves.append(np.maximum(x, 0, out=x))
    return np.concatenate(halves, axis=1)


def _smooth_noise(rng: np.random.Generator, length: int, window: int) -> np.ndarray:
    """Noise of unit variance [length, NUISANCE] whose neighbours correlate over ``window`` snippets, float32."""
    total = np.cumsum(rng.standard_normal((length + window, NUISANCE)), axis=0)
    return ((total[window:] - total[:-window]) / np.sqrt(window)).astype(np.float32)


def make_proposals(
    rng: np.random.Generator,
    duration_s: float,
    segments_s: np.ndarray,
    distractors_s: np.ndarray,
    count: int,
    snippet_s: float,
) -> np.ndarray:
    """``count`` proposals [count, 2] in seconds inside [0, duration_s], end > start, in no order.

    Of mixed quality: instances ``segments_s`` [n, 2] with jitter, their parts and unions, the same around
    ``distractors_s`` [k, 2], random windows. About every twelfth instance is covered by none (tIoU < 0.3). A third of
    the proposals are duplicates. snippet_s: seconds a snippet.
    """
    missed = rng.random(len(segments_s)) < 0.08
    distinct = max(1, round(count * 2 / 3))
    low, high = 3 * snippet_s, max(4 * snippet_s, 0.4 * duration_s)
    span = np.exp(rng.uniform(np.log(low), np.log(high), distinct))
    start = rng.uniform(0, 1, distinct) * (duration_s + span) - span
    boxes = np.stack([start, start + span], axis=1)
    kind = rng.random(distinct)[:, None]
    if not missed.all():
        own, other = (segments_s[~missed][rng.integers((~missed).sum(), size=distinct)] for _ in range(2))
        span = own[:, 1:] - own[:, :1]
        jitter = rng.normal(0, 1, own.shape) * span
        part = own[:, :1] + np.sort(rng.uniform(0, 1, own.shape), axis=1) * span
        union = np.stack([np.minimum(own, other)[:, 0], np.maximum(own, other)[:, 1]], axis=1) + 0.1 * jitter
        for share, choice in ((0.26, union), (0.20, part), (0.13, own + 0.25 * jitter)):
            boxes = np.where(kind < share, choice, boxes)
    if len(distractors_s):
        near = distractors_s[rng.integers(len(distractors_s), size=distinct)]
        near = near + rng.normal(0, 0.15, near.shape) * (near[:, 1:] - near[:, :1])
        boxes = np.where(kind > 0.72, near, boxes)
    boxes = np.clip(np.sort(boxes, axis=1), 0, duration_s)
    span = min(2 * snippet_s, duration_s)
    start = rng.uniform(0, 1, distinct) * (duration_s - span)
    too_short = boxes[:, 1] - boxes[:, 0] < min(snippet_s, 0.99 * duration_s)  # also what lay outside the video
    boxes = np.where(too_short[:, None], np.stack([start, start + span], axis=1), boxes)
    free = (tiou(boxes, segments_s[missed]) < 0.3).all(axis=1)
    boxes = boxes[free] if free.any() else boxes
    boxes = np.concatenate([boxes, boxes[rng.integers(len(boxes), size=count - len(boxes))]])
    return np.floor(boxes * 1000) / 1000  # rounding up could leave the video
