"""From a video file to I3D features: decode, flow, snippets, i3d, weights, and features, which joins them.

Nothing in here is imported by the rest of the program unless videos are given: PyAV and OpenCV are requirements of
their own (requirements-video.txt), imported where they are used.
"""

REQUIREMENTS = "pip install -r requirements-video.txt"
