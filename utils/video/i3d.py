"""The Inflated 3D ConvNet (I3D) in evaluation mode, as Carreira and Zisserman (CVPR 2017) published it.

Batch norm is folded into its convolution when weights are loaded (utils.video.weights), so that the network consists
of convolutions with a bias, ReLU and pooling. Modules have piergiaj's names.
"""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1024
SIDE = 224  # height and width of the input in pixels
# Inception modules in order: input channels, then [a, b, c, d, e, f] as the paper's figure has them
MIXED: Dict[str, Tuple[int, Tuple[int, ...]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def same_padding(size: int, kernel: int, stride: int) -> Tuple[int, int]:
    """Zeros before and after one axis of ``size`` under TensorFlow's padding "SAME"; the odd one goes behind."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """x [N, C, F, H, W] with the zeros of SAME padding around its last three axes."""
    pads = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride)):  # F.pad begins at the last axis
        pads += same_padding(size, k, s)
    return F.pad(x, pads) if any(pads) else x


class Unit(nn.Module):
    """Convolution with bias, SAME padding, ReLU: [N, inputs, F, H, W] -> [N, outputs, F', H', W']."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        # at stride 1 SAME padding is the same on both sides, which the convolution does without a copy
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv3d.stride[0] > 1:
            x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return self.conv3d(x).relu_()


class Mixed(nn.Module):
    """Inception module of widths a to f: [N, inputs, F, H, W] -> [N, a + c + e + f, F, H, W]."""

    def __init__(self, inputs: int, widths: Sequence[int]):
        super().__init__()
        a, b, c, d, e, f = widths
        self.b0 = Unit(inputs, a)
        self.b1a, self.b1b = Unit(inputs, b), Unit(b, c, 3)
        self.b2a, self.b2b = Unit(inputs, d), Unit(d, e, 3)
        self.b3b = Unit(inputs, f)

    def forward(self, x: Tensor) -> Tensor:
        # no value is negative after ReLU, so the pool's own padding (minus infinity) equals SAME's zeros
        pooled = F.max_pool3d(x, 3, stride=1, padding=1)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3D(nn.Module):
    """I3D of one stream: 3 input channels for RGB, 2 for optical flow (horizontal, vertical).

    classes: outputs of the classification head, 0 for a network without one. The weights are those torch draws until
    ``utils.video.weights.load_i3d`` fills them.
    """

    def __init__(self, channels: int = 3, classes: int = 0):
        super().__init__()
        self.channels, self.classes = channels, classes
        self.Conv3d_1a_7x7 = Unit(channels, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (inputs, widths) in MIXED.items():
            self.add_module(name, Mixed(inputs, widths))
        if classes:
            self.logits = nn.Linear(FEATURES, classes)
        self.eval()
        self.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """clips [N, channels, F, 224, 224] in [-1, 1], F of 9 frames or more -> features float32 [N, T', 1024].

        T' is ceil(F / 8) - 1, at least 1: one for 16 frames, two for 17 to 24. Computes in the type of the weights.
        Raises ValueError for another shape. Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?" (2017).
        """
        if clips.ndim != 5 or clips.shape[1] != self.channels or clips.shape[2] < 9 or clips.shape[3:] != (SIDE, SIDE):
            raise ValueError(f"clips must be [N, {self.channels}, 9 or more, {SIDE}, {SIDE}], not {tuple(clips.shape)}")
        x = self.Conv3d_1a_7x7(clips.to(self.Conv3d_1a_7x7.conv3d.weight.dtype))
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = _max_pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        # the mean over 2 x 7 x 7 without padding: 7 x 7 is all there is, and 2 slides over time
        x = x.float().mean((3, 4))
        return ((x[:, :, 1:] + x[:, :, :-1]) / 2).transpose(1, 2)

    def classify(self, features: Tensor) -> Tensor:
        """Logits float32 [..., classes] of features [..., 1024]. Raises ValueError for a network without a head."""
        if not self.classes:
            raise ValueError("these weights have no classification head")
        return F.linear(features.float(), self.logits.weight.float(), self.logits.bias.float())


def _max_pool(x: Tensor, kernel: Tuple[int, int, int], stride: Tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)
