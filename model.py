"""The P-MIL base model (Ren et al., CVPR 2023) with the process-consistency branch of the paper, its Fig. 2."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Collection, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from utils.errors import InputError
from utils.files import load_checkpoint, save_checkpoint
from utils.packed import Outputs

PREFIX = "prop_fused_backbone."  # of every name in a released checkpoint
README = "README, 'THUMOS14 from download to table', says where checkpoints come from"


class Branch(NamedTuple):
    """A branch of the network: Linear(2D -> D), ReLU, Linear(D -> width), and what is read from it."""

    layer: str  # the released name
    width: Callable[[int], int]  # from the number of classes
    read: Callable[[Tensor], Tensor]


def _unit(x: Tensor) -> Tensor:
    x = x.squeeze(1)  # of bfloat16, a sigmoid would have some 100 values between 0.5 and 1
    return (x.float() if x.dtype == torch.bfloat16 else x).sigmoid()


BRANCHES = {  # by the name of the output
    "s_base": Branch("prop_classifier", lambda classes: classes + 1, lambda x: x),  # the last column is background
    "attention": Branch("prop_attention", lambda classes: 1, _unit),
    "s_pc": Branch("prop_completeness", lambda classes: 1, _unit),
}


def dropout(x: Tensor, ratio: float) -> Tensor:
    """Inverted dropout of x [N, W] from torch's generator, 16 bits an element (the ratio is rounded to 1/65536).

    Four elements share a 64-bit draw: torch's own Bernoulli draws take 5 % of a step on a CPU.
    """
    words = torch.empty(len(x), -(-x.shape[1] // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    keep = words.view(torch.int16)[:, : x.shape[1]] >= round(ratio * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - round(ratio * 65536) / 65536))


class SEAL(nn.Module):
    """Scores proposals. feature_size is 2D (both modalities), num_class is C.

    Weights and biases are uniform in +-1/sqrt(fan_in), drawn from ``seed``: P-MIL and the release initialise nothing
    themselves, so torch's own initialisation of linear layers holds.
    """

    def __init__(self, feature_size: int, num_class: int, dropout_ratio: float = 0.5, seed: int = 0):
        super().__init__()
        self.feature_size, self.num_class, self.dropout_ratio = feature_size, num_class, dropout_ratio
        net = nn.ModuleDict({"prop_fusion": nn.Sequential(nn.Linear(3 * feature_size, feature_size), nn.ReLU())})
        for branch in BRANCHES.values():
            hidden, out = feature_size // 2, branch.width(num_class)
            net[branch.layer] = nn.Sequential(nn.Linear(feature_size, hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.prop_fused_backbone = net
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                for parameter in (layer.weight, layer.bias):
                    nn.init.uniform_(
                        parameter, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator
                    )

    def forward(
        self, rows: Tensor, index: Optional[Tensor] = None, padding: int = 0, share_rows: bool = False
    ) -> Outputs:
        """Score N proposals from U packed SCFE inputs.

        rows: [U, 6D] (``utils.datasets.scfe``). padding: K rows of the SCFE input 0, which pads a batch in the authors'
        code, follow after them. index: int64 [N], the row of each proposal, and behind them of the padding, U to
        U + K - 1; None: row i is proposal i. The fusion layer runs once a row and dropout acts on each proposal; with
        ``share_rows``, and in evaluation, all of it runs once a row. Returns s_base [N, C+1] logits, attention and
        s_pc [N] in (0, 1), f_prop [N, 2D], N counting the padding.
        """
        if rows.ndim != 2 or rows.shape[1] != 3 * self.feature_size:
            raise ValueError(f"rows must be [U, {3 * self.feature_size}], not {tuple(rows.shape)}")
        net = self.prop_fused_backbone
        f_prop = net["prop_fusion"](rows)
        if padding:
            f_prop = torch.cat([f_prop, net["prop_fusion"][0].bias.relu().to(f_prop).expand(padding, -1)])
        if index is not None and self.training and not share_rows:
            f_prop, index = f_prop.index_select(0, index), None
        if self.training and self.dropout_ratio:
            f_prop = dropout(f_prop, self.dropout_ratio)
        logits = [net[branch.layer](f_prop) for branch in BRANCHES.values()]
        if index is not None:  # one gather for the narrow outputs
            f_prop, widths = f_prop.index_select(0, index), [x.shape[1] for x in logits]
            logits = torch.cat(logits, 1).index_select(0, index).split(widths, 1)
        return {**{name: branch.read(x) for (name, branch), x in zip(BRANCHES.items(), logits)}, "f_prop": f_prop}

    def freeze(self, outputs: Collection[str]) -> None:
        """No gradient for the branches behind these outputs: nothing trains them."""
        for name in outputs:
            self.prop_fused_backbone[BRANCHES[name].layer].requires_grad_(False)


def save_model(path: Path, model: SEAL, info: Dict[str, object]) -> None:
    """Write the state_dict under the released names and shapes: branch weights are kernel-1 convolutions [o, i, 1].

    ``info`` (plain data) travels in the state_dict's metadata, which other programs ignore: the authors' code loads the
    file as its own.
    """
    state = model.state_dict()
    branches = tuple(f"{PREFIX}{branch.layer}." for branch in BRANCHES.values())
    out = OrderedDict((k, v.unsqueeze(-1) if v.ndim == 2 and k.startswith(branches) else v) for k, v in state.items())
    out._metadata = OrderedDict(getattr(state, "_metadata", {}), seal=info)  # type: ignore[attr-defined]
    save_checkpoint(path, out)


def load_model(path: Path) -> Tuple[SEAL, Dict[str, Any]]:
    """A model from a checkpoint of ours or the authors', and the info it carries (empty in a bare one).

    Kernel-1 convolution weights [o, i, 1] and linear ones [o, i] are both accepted. Raises InputError naming file and
    parameter.
    """
    state = load_checkpoint(path, todo=f"train one (ckpt/best_model.pkl of a run), or: {README}")
    todo = "give a checkpoint of this program or the authors' best_model.pkl"
    if isinstance(state, dict) and {"model", "optimizer", "epoch"} <= set(state):
        raise InputError(
            "the state of a run, not a checkpoint", path, "give last_model.pkl or best_model.pkl beside it"
        )
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError("not a state_dict", path, todo)
    weights = {k: v.squeeze(-1) if v.ndim == 3 and v.shape[-1] == 1 else v for k, v in state.items()}
    fusion, classifier = (weights.get(f"{PREFIX}{layer}.weight") for layer in ("prop_fusion.0", "prop_classifier.2"))
    known = fusion is not None and classifier is not None and fusion.ndim == classifier.ndim == 2
    if not known or min(fusion.shape[0], classifier.shape[0]) < 2 or fusion.shape[1] != 3 * fusion.shape[0]:
        raise InputError("no fusion layer or no classifier of this network", path, todo)
    model = SEAL(len(fusion), len(classifier) - 1)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            what = f"{name} has shape {found.get(name)}, expected {expected.get(name)}"
            raise InputError(what, path, todo)
    if not all(bool(v.isfinite().all()) for v in weights.values()):
        raise InputError("NaN or Inf in the weights", path, "use another checkpoint")
    model.load_state_dict(weights)
    return model, getattr(state, "_metadata", {}).get("seal", {})


def check_classes(path: Path, model: SEAL, info: Dict[str, Any], classes: Sequence[str]) -> None:
    """Refuse a checkpoint of other classes than the data have (InputError)."""
    if model.num_class != len(classes):
        what = f"a checkpoint of {model.num_class} classes for data of {len(classes)}"
        raise InputError(what, path, "use its own dataset")
    if info.get("classes", list(classes)) != list(classes):
        raise InputError("a checkpoint of other classes, or in another order", path, "use its own classlist")
