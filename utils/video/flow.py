"""Optical flow between two frames, as the 8-bit numbers that I3D's flow stream is given."""

from __future__ import annotations

import threading
from typing import Any, Callable

import numpy as np

from utils.errors import InputError
from utils.video import REQUIREMENTS, package

METHODS = ("tvl1", "dis")
LIMIT = 20.0  # pixels a frame; faster motion is clipped
STILL = 128  # the 8-bit number of no motion

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]


def flow_method(name: str) -> Flow:
    """A function (frame, next frame), both uint8 [H, W, 3], -> their flow uint8 [H, W, 2], horizontal, vertical.

    The function may be called from several threads at once. name: "tvl1" (Zach, Pock and Bischof 2007), what I3D was
    trained on, or "dis" (Kroeger et al. 2016), about a hundred times faster and not the same. Both with OpenCV's own
    settings, DIS in its medium preset. Raises InputError where OpenCV lacks the method.
    """
    cv2 = package("cv2")
    if name == "tvl1" and not hasattr(cv2, "optflow"):
        todo = f"pip uninstall opencv-python opencv-python-headless; {REQUIREMENTS}; or --flow dis"
        raise InputError("this OpenCV lacks TV-L1 (it is in opencv-contrib-python-headless)", None, todo)
    local = threading.local()  # these objects keep their buffers, so each thread needs one of its own

    def algorithm() -> Any:
        if not hasattr(local, "made"):
            made = {
                "tvl1": lambda: cv2.optflow.DualTVL1OpticalFlow_create(),
                "dis": lambda: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
            }
            local.made = made[name]()
        return local.made

    def flow(frame: np.ndarray, following: np.ndarray) -> np.ndarray:
        if frame is following:  # shown twice, as in videos of fewer than 25 frames a second
            return np.full((*frame.shape[:2], 2), STILL, np.uint8)
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (frame, following)]
        return quantise(algorithm().calc(*grey, None))

    return flow


def quantise(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels a frame, any shape -> uint8: clipped to +-20, then round(128 + flow * 255 / 40)."""
    scaled = np.rint(STILL + np.clip(flow, -LIMIT, LIMIT) * (255 / (2 * LIMIT)))
    return np.clip(scaled, 0, 255).astype(np.uint8)
