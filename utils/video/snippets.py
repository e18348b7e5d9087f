"""Snippets of 16 frames, one behind the other, and the crops of them that I3D sees."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor

from utils.video.i3d import SIDE

LENGTH = 16  # frames of a snippet, and from one snippet to the next


class Snippet(NamedTuple):
    """Sixteen frames, and of each the flow to the next one (empty where none is asked for)."""

    images: List[Any]
    flows: List[Any]


def count(frames: int) -> int:
    """How many snippets a video of so many frames has: those that are full, and one where none is."""
    return max((frames - LENGTH) // LENGTH + 1, 1)


def snippets(images: Iterable[Any], pair: Optional[Callable[[Any, Any], Any]] = None) -> Iterator[Snippet]:
    """Cut a stream of frames into snippets, holding at most one and the frame after it.

    pair(frame, next frame) gives the flow of a frame (or a promise of it). The last frame of a video has no next one
    and takes the flow of the frame before. A video of fewer than 16 frames is one snippet, its last frame and flow
    repeated; a single frame is paired with itself. Frames after the last full snippet are left out.
    """
    held: List[Any] = []
    whole = 0
    for image in images:
        if len(held) == LENGTH:
            yield Snippet(held, _flows([*held, image], pair))
            whole, held = whole + 1, []
        held.append(image)
    if held and (len(held) == LENGTH or not whole):
        flows = _flows(held if len(held) > 1 else held * 2, pair)
        yield Snippet(_lengthened(held), _lengthened(flows))


def crops(clips: Tensor, oversample: bool = False, flow: bool = False) -> Tensor:
    """What I3D is given of clips uint8 [N, 16, 256, 340, C]: float32 [N * K, C, 16, 224, 224] in [-1, 1].

    K = 1, the centre: rows 16 to 240, columns 58 to 282. With ``oversample`` K = 10, next to each other: the four
    corners, the centre, and their mirror images; in the mirror, horizontal ``flow`` changes its sign. Values are
    x * 2 / 255 - 1. Ten crops: Krizhevsky et al. 2012.
    """
    height, width = clips.shape[2:4]
    centre = ((height - SIDE) // 2, (width - SIDE) // 2)
    places = [(0, 0), (0, width - SIDE), (height - SIDE, 0), (height - SIDE, width - SIDE)] if oversample else []
    parts = [clips[:, :, y : y + SIDE, x : x + SIDE].float() for y, x in [*places, centre]]
    if oversample:
        mirrored = [part.flip(3) for part in parts]
        if flow:
            for part in mirrored:  # 128 is no motion, so 0 (20 pixels to the left) becomes 256, which is clipped
                part[..., 0] = (256 - part[..., 0]).clamp_(max=255)
        parts += mirrored
    stacked = torch.stack(parts, 1).flatten(0, 1)
    return stacked.mul_(2 / 255).sub_(1).permute(0, 4, 1, 2, 3)


def _flows(images: List[Any], pair: Optional[Callable[[Any, Any], Any]]) -> List[Any]:
    return [] if pair is None else [pair(a, b) for a, b in zip(images, images[1:])]


def _lengthened(items: List[Any]) -> List[Any]:
    return items + items[-1:] * (LENGTH - len(items))
