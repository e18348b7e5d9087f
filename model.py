"""The P-MIL base model (Ren et al., CVPR 2023) with the process-consistency branch of the paper, its Fig. 2."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from options import LOSSES, RECIPES
from utils.annotations import WHERE_FROM
from utils.errors import InputError
from utils.files import load_checkpoint, save_checkpoint
from utils.packed import Outputs

Draws = Sequence[Tuple[torch.Generator, int]]  # a stream of random bits and how many rows take from it, in order


def dropout(x: Tensor, ratio: float, draws: Draws) -> Tensor:
    """Inverted dropout of x [N, W] with 16 random bits an element; each of ``draws`` serves the next rows.

    The keep probability is rounded to 1/65536. Four elements share a 64-bit number, which makes this several times
    cheaper on a CPU than a Bernoulli draw an element. ValueError where the draws do not serve every row once.
    """
    if sum(rows for _, rows in draws) != len(x):
        raise ValueError(f"draws for {sum(rows for _, rows in draws)} of {len(x)} rows")
    if ratio == 0:
        return x
    words = torch.empty(len(x), (x.shape[1] + 3) // 4, dtype=torch.int64, device=x.device)
    for part, (generator, _) in zip(words.split([rows for _, rows in draws]), draws):
        part.random_(-(2**63), None, generator=generator)  # the whole range: every bit is random
    dropped = round(ratio * 65536)
    keep = words.view(torch.int16)[:, : x.shape[1]] >= dropped - 32768
    return x * keep.to(x.dtype).mul_(65536 / (65536 - dropped))


class _Branch(nn.Sequential):
    """Linear(2D -> D), ReLU, Linear(D -> out): a convolution of kernel 1 over proposals."""

    def __init__(self, width: int, out: int):
        super().__init__(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, out))


class Backbone(nn.Module):
    """Fusion layer and the three branches, under the names of the released checkpoints."""

    def __init__(self, feature_size: int, num_class: int):
        super().__init__()
        self.prop_fusion = nn.Sequential(nn.Linear(3 * feature_size, feature_size), nn.ReLU())
        self.prop_classifier = _Branch(feature_size, num_class + 1)
        self.prop_attention = _Branch(feature_size, 1)
        self.prop_completeness = _Branch(feature_size, 1)


class SEAL(nn.Module):
    """Scores proposals. feature_size is 2D (both modalities), num_class is C.

    Weights and biases are uniform in +-1/sqrt(fan_in), drawn from ``seed``: P-MIL and the release initialise nothing
    themselves, so torch's own initialisation of linear layers holds.
    """

    def __init__(self, feature_size: int, num_class: int, dropout_ratio: float = 0.5, seed: int = 0):
        super().__init__()
        self.feature_size, self.num_class, self.dropout_ratio = feature_size, num_class, dropout_ratio
        self.prop_fused_backbone = Backbone(feature_size, num_class)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(
        self, rows: Tensor, index: Optional[Tensor] = None, draws: Optional[Draws] = None, share_rows: bool = False
    ) -> Outputs:
        """Score N proposals from U packed SCFE inputs.

        rows: [U, 6D] (``utils.scfe``). index: int64 [N], the row of each proposal; None: row i is proposal i. The
        fusion layer runs once a row and dropout acts on each proposal; with ``share_rows`` everything runs once a
        row, dropout too. draws: streams of the dropout for the N proposals (or U rows); None: no dropout, and rows
        are shared. Returns s_base [N, C+1] logits, attention [N], s_pc [N] in (0, 1), f_prop [N, 2D].
        """
        if rows.ndim != 2 or rows.shape[1] != 3 * self.feature_size:
            raise ValueError(f"rows must be [U, {3 * self.feature_size}], not {tuple(rows.shape)}")
        net = self.prop_fused_backbone
        f_prop = net.prop_fusion(rows)
        late = share_rows or draws is None
        if index is not None and not late:
            f_prop = f_prop.index_select(0, index)
        if draws is not None:
            f_prop = dropout(f_prop, self.dropout_ratio, draws)
        s_base = net.prop_classifier(f_prop)
        attention = net.prop_attention(f_prop).squeeze(1).sigmoid()
        s_pc = net.prop_completeness(f_prop).squeeze(1).sigmoid()
        outputs = Outputs(s_base, attention, s_pc, f_prop)
        return Outputs(*(x.index_select(0, index) for x in outputs)) if index is not None and late else outputs


def save_model(path: Path, model: SEAL, info: Dict[str, object]) -> None:
    """Write the state_dict under the released names and shapes: branch weights are kernel-1 convolutions [o, i, 1].

    ``info`` (plain data) travels in the state_dict's metadata, which other programs pass over: the authors' code loads
    the file as its own.
    """
    state = model.state_dict()
    out = OrderedDict((k, v.unsqueeze(-1) if _is_convolution(k, v) else v) for k, v in state.items())
    out._metadata = OrderedDict(getattr(state, "_metadata", {}), seal=info)  # type: ignore[attr-defined]
    save_checkpoint(path, out)


def check_classes(path: Path, model: SEAL, info: Dict[str, object], classes: Sequence[str]) -> None:
    """Refuse a checkpoint of other classes than the data have (InputError)."""
    if model.num_class != len(classes):
        what = f"a checkpoint of {model.num_class} classes for data of {len(classes)}"
        raise InputError(what, path, "use its own dataset")
    if info.get("classes", list(classes)) != list(classes):
        raise InputError("a checkpoint of other classes, or in another order", path, "use its own classlist")


def load_model(path: Path) -> Tuple[SEAL, Dict[str, Any]]:
    """A model from a checkpoint of ours or the authors', and the info it carries (empty in a bare one).

    Kernel-1 convolution weights [o, i, 1] and linear ones [o, i] are both accepted. Raises InputError naming file and
    parameter.
    """
    state = load_checkpoint(path, todo="train one (ckpt/best_model.pkl of a run), or: " + WHERE_FROM)
    todo = "give a checkpoint of this program or the authors' best_model.pkl"
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError("not a state_dict", path, todo)
    info = getattr(state, "_metadata", {}).get("seal", {})
    weights = {k: v.squeeze(-1) if v.ndim == 3 and v.shape[-1] == 1 else v for k, v in state.items()}
    sized = [f"prop_fused_backbone.{layer}.weight" for layer in ("prop_fusion.0", "prop_classifier.2")]
    try:
        fusion, classifier = (tuple(weights[name].shape) for name in sized)
        feature_size, num_class = fusion[0], classifier[0] - 1
    except (KeyError, IndexError) as error:
        raise InputError(f"no parameter {error}", path, todo) from None
    # values of the file fill these two, and no other layer is larger: the model takes a small multiple of the file
    wanted = (feature_size, 3 * feature_size), (num_class + 1, feature_size // 2)
    if (fusion, classifier) != wanted or feature_size < 2 or num_class < 1:
        what = f"a fusion layer {fusion} with a classifier {classifier} is no network of this kind"
        raise InputError(what, path, todo)
    _check_info(info, feature_size, num_class, path)
    model = SEAL(feature_size, num_class)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            what = f"{name} has shape {found.get(name)}, expected {expected.get(name)}"
            raise InputError(what, path, todo)
    if not all(bool(v.isfinite().all()) for v in weights.values()):
        raise InputError("NaN or Inf in the weights", path, "use another checkpoint")
    model.load_state_dict(weights)
    return model, info


def _check_info(info: Dict[str, Any], feature_size: int, num_class: int, path: Path) -> None:
    """A checkpoint's info is empty, or says all that prediction needs in plain values that fit the weights."""
    number = (int, float)
    table = (  # name, types, what must hold of the value
        ("classes", (list,), lambda v: _texts(v) and all(v) and len(set(v)) == len(v) == num_class),
        ("losses", (list,), lambda v: _texts(v) and set(v) <= set(LOSSES)),
        ("roi_size", (int,), lambda v: v % 6 == 0 and 6 <= v <= 1200),
        ("feature_fps", number, lambda v: 1e-3 <= v < 1e6),
        ("snippet_stride", number, lambda v: 1e-3 <= v < 1e6),
        ("recipe", (str,), lambda v: v in RECIPES),
        ("feature_size", (int,), lambda v: v == feature_size),
    )
    said = {"recipe": next(iter(RECIPES)), "feature_size": feature_size, **info}  # these two may be absent
    wrong = [name for name, kinds, good in table if not (type(said.get(name)) in kinds and good(said[name]))]
    try:
        json.dumps(info, allow_nan=False)
    except (TypeError, ValueError):
        wrong.append("a value that is not plain")
    if info and wrong:
        todo = "save it again, or use its bare state_dict"
        raise InputError(f"a checkpoint whose info is damaged: {', '.join(wrong)}", path, todo)


def _texts(values: Sequence[object]) -> bool:
    return all(type(value) is str for value in values)


def _is_convolution(name: str, value: Tensor) -> bool:
    return value.ndim == 2 and ".prop_fusion." not in name
