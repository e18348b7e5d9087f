"""The network: golden forward pass, released checkpoint names, packed rows, dropout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import SEAL, check_classes, dropout, load_model, save_model
from utils.errors import InputError
from utils.files import load_checkpoint
from utils.scfe import scfe_input

INFO = {
    "classes": [f"c{i}" for i in range(20)], "losses": ["pc"],
    "roi_size": 12, "feature_fps": 25.0, "snippet_stride": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def released(golden):
    return load_model(golden / "checkpoint.pkl")


def test_golden_checkpoint_reproduces_the_authors_forward_pass(golden, released):
    model, info = released
    z = np.load(golden / "forward.npz")
    rows = scfe_input(torch.from_numpy(z["features"]), z["proposals"].astype(np.float64))
    with torch.no_grad():
        out = model.eval()(rows)
    assert info == {}
    for name, found in (
        ("s_base", out.s_base),
        ("attn_logit", out.attention.logit()),
        ("pc_logit", out.s_pc.logit()),
        ("f_prop", out.f_prop),
    ):
        np.testing.assert_allclose(found.squeeze(), z[name], rtol=1e-4, atol=1e-5)


def test_a_saved_checkpoint_has_the_released_names_and_shapes_and_carries_its_info(golden, released, tmp_path):
    model, _ = released
    save_model(tmp_path / "m.pkl", model, {**INFO, "epoch": 3})
    ours, theirs = load_checkpoint(tmp_path / "m.pkl"), load_checkpoint(golden / "checkpoint.pkl")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    again, info = load_model(tmp_path / "m.pkl")
    assert info["epoch"] == 3
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def test_the_authors_strict_loading_accepts_our_file(released, tmp_path):
    """Their model is made of kernel-1 Conv1d layers and loads with strict=True."""
    model, _ = released
    save_model(tmp_path / "m.pkl", model, INFO)

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            branch = lambda out: torch.nn.Sequential(  # noqa: E731
                torch.nn.Conv1d(32, 16, 1), torch.nn.ReLU(), torch.nn.Conv1d(16, out, 1)
            )
            self.prop_fused_backbone = torch.nn.Module()
            self.prop_fused_backbone.prop_fusion = torch.nn.Sequential(torch.nn.Linear(96, 32), torch.nn.ReLU())
            self.prop_fused_backbone.prop_classifier = branch(21)
            self.prop_fused_backbone.prop_attention = branch(1)
            self.prop_fused_backbone.prop_completeness = branch(1)

    Theirs().load_state_dict(torch.load(tmp_path / "m.pkl", weights_only=True), strict=True)


def test_rows_are_scored_alone_as_in_any_batch_and_shared_rows_agree():
    model = SEAL(16, 3).double()
    rows = torch.randn(7, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 0, 3, 6, 3, 2])
    together, alone = model(rows[index]), [model(rows[i : i + 1]) for i in index]
    shared = model(rows, index)
    for name in together._fields:
        expected = torch.cat([getattr(a, name) for a in alone])
        torch.testing.assert_close(getattr(together, name), expected)
        torch.testing.assert_close(getattr(shared, name), expected)


def bits(seed):
    return torch.Generator().manual_seed(seed)


def test_dropout_acts_on_each_proposal_or_once_a_row():
    model = SEAL(32, 3)
    rows, index = torch.randn(2, 96, generator=bits(0)), torch.tensor([0, 0, 1])
    apart = model(rows, index, [(bits(5), 3)]).f_prop
    assert not torch.equal(apart[0], apart[1])
    shared = model(rows, index, [(bits(5), 2)], share_rows=True).f_prop
    assert torch.equal(shared[0], shared[1]) and not torch.equal(shared[0], model(rows).f_prop[0])
    assert torch.equal(apart, model(rows, index, [(bits(5), 3)]).f_prop)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(ratio):
    x = torch.ones(1000, 401)
    y = dropout(x, ratio, [(bits(1), 1000)])
    kept = (y != 0).float().mean().item()
    assert abs(kept - (1 - ratio)) < 4 * (ratio * (1 - ratio) / x.numel()) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - ratio)), rtol=1e-4, atol=0)
    columns = (y != 0).float().mean(0)
    assert columns.std() < 1.2 * (ratio * (1 - ratio) / 1000) ** 0.5  # no lane of the 64-bit draws stands out


def test_a_videos_dropout_is_the_same_alone_as_in_any_batch():
    x = torch.rand(12, 6) + 1
    batch = dropout(x, 0.5, [(bits(1), 5), (bits(2), 7)])
    assert torch.equal(batch[5:], dropout(x[5:], 0.5, [(bits(2), 7)]))
    assert torch.equal(dropout(x, 0.0, [(bits(1), 12)]), x)
    with pytest.raises(ValueError, match="draws for 5 of 12 rows"):
        dropout(x, 0.5, [(bits(1), 5)])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("prop_fused_backbone.prop_attention.0.bias"), "prop_attention.0.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(2)}), "extra.weight"),
        (lambda s: s.update({"prop_fused_backbone.prop_fusion.0.weight": torch.zeros(32, 95)}), "(32, 95)"),
        (lambda s: s["prop_fused_backbone.prop_fusion.0.bias"].fill_(float("nan")), "NaN"),
        (lambda s: s.clear(), "no parameter"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_in_one_line(golden, tmp_path, change, words):
    state = dict(load_checkpoint(golden / "checkpoint.pkl"))
    change(state)
    torch.save(state, tmp_path / "bad.pkl")
    with pytest.raises(InputError, match="bad.pkl") as error:
        load_model(tmp_path / "bad.pkl")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_other_classes_is_refused(golden, released, tmp_path):
    path = golden / "checkpoint.pkl"
    with pytest.raises(InputError, match="20 classes for data of 3"):
        check_classes(path, *load_model(path), ["a", "b", "c"])
    names = [f"c{i}" for i in range(20)]
    save_model(tmp_path / "m.pkl", released[0], INFO)
    check_classes(path, *load_model(tmp_path / "m.pkl"), names)
    with pytest.raises(InputError, match="other classes"):
        check_classes(path, *load_model(tmp_path / "m.pkl"), names[::-1])


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="rows must be"):
        SEAL(16, 3)(torch.zeros(2, 47))


DAMAGED = {
    "classes": (["a"], "c" * 20, [], None, range(20), [*"abcdefghijklmnopqrss"], ["", *INFO["classes"][1:]],
                [0, *INFO["classes"][1:]], [torch.ones(2), *INFO["classes"][1:]]),
    "losses": ("pc", None, ["pc", "x"], [5], [["pc"]], [torch.ones(3)]),
    "roi_size": (7, 0, -12, 12.0, True, "12", 1206, 6 * 10**8, torch.tensor(12)),
    "feature_fps": (0, -25, 1e-300, 1e300, float("inf"), float("nan"), True, "25", None, 10**300, torch.tensor(25.0)),
    "snippet_stride": (0, 1e-300, float("inf"), float("nan"), True, None, [16]),
    "recipe": ("mine", [1], None),
    "feature_size": (16, 32.0, "32", None, True),
    "a value that is not plain": (torch.ones(2), [{"a": torch.ones(2)}], float("nan")),
}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in DAMAGED.items() for value in values])
def test_damaged_info_is_refused_by_name(released, tmp_path, name, value):
    info = {**INFO, name: list(value) if isinstance(value, range) else value}
    save_model(tmp_path / "m.pkl", released[0], info)
    with pytest.raises(InputError, match=f"info is damaged: .*{name}.*m.pkl"):
        load_model(tmp_path / "m.pkl")


@pytest.mark.parametrize("name", INFO)
def test_info_without_what_prediction_needs_is_refused(released, tmp_path, name):
    save_model(tmp_path / "m.pkl", released[0], {k: v for k, v in INFO.items() if k != name})
    with pytest.raises(InputError, match=f"info is damaged: {name}"):
        load_model(tmp_path / "m.pkl")


def test_info_may_say_more(released, tmp_path):
    more = {
        "feature_size": 32,
        "recipe": "release",
        "losses": [],
        "dataset_name": "x",
        "epoch": 3,
        "feature_fps": 29.97,
    }
    save_model(tmp_path / "m.pkl", released[0], {**INFO, **more})
    assert load_model(tmp_path / "m.pkl")[1] == {**INFO, **more}


@pytest.mark.parametrize(
    "shapes",
    [
        {"prop_fusion.0": (2_000_000, 1)},
        {"prop_fusion.0": (10**9, 0)},
        {"prop_fusion.0": (0, 0), "prop_classifier.2": (10**9, 0)},
        {"prop_fusion.0": (1, 3), "prop_classifier.2": (10**9, 0)},
        {"prop_classifier.2": (10**9, 0)},
        {"prop_classifier.2": (10**13, 0, 1)},
        {"prop_classifier.2": (2_000_000, 1)},
        {"prop_classifier.2": (0, 16)},
    ],
)
def test_an_absurd_shape_is_refused_before_memory_is_taken(golden, tmp_path, monkeypatch, shapes):
    """A shape with a zero in it needs no byte of the file."""
    state = dict(load_checkpoint(golden / "checkpoint.pkl"))
    state.update({f"prop_fused_backbone.{layer}.weight": torch.zeros(shape) for layer, shape in shapes.items()})
    torch.save(state, tmp_path / "m.pkl")
    monkeypatch.setattr("model.SEAL", lambda *args: pytest.fail("a model was built"))
    with pytest.raises(InputError, match="no network of this kind"):
        load_model(tmp_path / "m.pkl")


def test_a_missing_checkpoint_names_its_place_in_the_readme(tmp_path):
    with pytest.raises(InputError, match="no such file.*README, 'THUMOS14 from download to table'") as error:
        load_model(tmp_path / "m.pkl")
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert "## THUMOS14 from download to table" in readme and "checkpoints/best_model.pkl" in readme
    assert "m.pkl" in str(error.value)
