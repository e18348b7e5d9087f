"""What the classification head of the RGB weights sees in each snippet: a check that weights and frames fit.

The head is linear in the feature, so it is applied to features that are on disk; no video is read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Sequence

import numpy as np
import torch

from utils.errors import InputError
from utils.files import load_array
from utils.run.plots import save_figure
from utils.video.decode import RATE
from utils.video.i3d import FEATURES, I3D
from utils.video.snippets import LENGTH
from utils.video.weights import load_i3d

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")


def class_names(number: int) -> List[str]:
    """Names of a head's classes: those of Kinetics-400 (Kay et al. 2017) for 400, else their numbers."""
    if number == 400:
        return (Path(__file__).parent / "kinetics400.txt").read_text(encoding="utf-8").splitlines()
    return [f"class {index}" for index in range(number)]


def probabilities(features: np.ndarray, model: I3D) -> np.ndarray:
    """Class probabilities float32 [T, classes] of features [T, 1024 or more], whose first 1024 are RGB's."""
    rgb = torch.from_numpy(np.array(features[:, :FEATURES], np.float32))
    with torch.inference_mode():
        return model.classify(rgb).softmax(-1).numpy()


def report(
    files: Dict[str, Path], weights: str, folder: Path, best: int, curves: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[str]:
    """One line a video with its ``best`` classes by mean probability, and a picture of them over time in ``folder``.

    files: features by video. weights: those the RGB features were made with. curves: by video, others in [0, 1] with
    their names, float [T], drawn beside them. Raises InputError for weights without a head.
    """
    model, source = load_i3d(weights, 3)
    if not model.classes:
        raise InputError("weights without a classification head", source.name, "leave out --classes")
    names = class_names(model.classes)
    for video, path in files.items():
        values = probabilities(load_array(path, mmap=True), model)
        top = np.argsort(-values.mean(0), kind="stable")[:best]
        first = np.bincount(values.argmax(1), minlength=len(names))
        parts = [f"{names[i]} {values[:, i].mean():.2f} (first in {first[i]} of {len(values)} snippets)" for i in top]
        figure = draw(video, [names[i] for i in top], values[:, top], source.name, curves.get(video, {}))
        save_figure(folder / f"{video}.png", figure)
        yield f"{video}: {', '.join(parts)}"


def draw(video: str, names: Sequence[str], values: np.ndarray, source: str, curves: Mapping[str, np.ndarray]) -> Figure:
    """A picture of probabilities [T, classes] over seconds, a step a snippet, by the head of the weights ``source``;
    with other curves [T] by name, in black."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(len(values) + 1) * (LENGTH / RATE)
    for index, name in enumerate(names):
        axes.stairs(values[:, index], edges, label=name, color=COLOURS[index % len(COLOURS)], linewidth=1.8)
    for (name, curve), style in zip(curves.items(), ("--", "-")):
        axes.stairs(curve, edges, label=name, color="black", linestyle=style, linewidth=1.8)
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1.02), xlabel="seconds", ylabel="probability")
    axes.set_title(f"{video}: classes by the head of {source}, snippet by snippet", fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    return figure
