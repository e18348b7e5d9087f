"""From a video file to I3D features: decode, flow, snippets, i3d, weights, and features, which joins them.

Nothing in here is imported by the rest of the program unless videos are given: PyAV and OpenCV are requirements of
their own (requirements-video.txt), imported where they are used.
"""

from __future__ import annotations

import importlib
from typing import Any

from utils.errors import InputError

REQUIREMENTS = "pip install -r requirements-video.txt"
_PACKAGES = {"av": "PyAV, which decodes videos,", "cv2": "OpenCV, which resizes frames and computes flow,"}


def package(name: str) -> Any:
    """The module ``av`` or ``cv2``. Raises InputError with the pip line where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{_PACKAGES[name]} cannot be imported ({error})", None, REQUIREMENTS) from error
