"""The network is the paper's: its size, its published keys, its arithmetic, its reach."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain_dargnet
from networks import DARGNet, convert_state_dict, load_network, receptive_field_radius


def test_parameter_count() -> None:
    ours = sum(p.numel() for p in DARGNet().parameters())
    assert ours == 387_495  # every number that a layer uses
    stored = sum(torch.Size(shape).numel() for shape in plain_dargnet.published_shapes().values())
    assert (stored, len(plain_dargnet.published_shapes())) == (ours + 1, 170)


def test_operation_count() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        DARGNet()(torch.zeros(1, 3, 8, 8))
    macs = counter.get_total_flops() / 2
    assert macs / 64 * 481 * 321 / 1e9 == pytest.approx(62.69, abs=0.005)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (40, 33)])
def test_any_size_goes_in_and_comes_out(network: DARGNet, size: tuple[int, int]) -> None:
    assert network(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
def test_other_shapes_are_refused(network: DARGNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="N, 3, H, W"):
        network(torch.zeros(shape))


def test_published_state_gives_the_plain_formulation(tmp_path: Path) -> None:
    state = plain_dargnet.random_published_state()
    torch.save(state, tmp_path / "published.pth")
    network = load_network(tmp_path / "published.pth")
    rainy = torch.rand(2, 3, 37, 45, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain_dargnet.dargnet(state, rainy)
        assert expected.std() > 0.05  # numbers in which an error would show
        torch.testing.assert_close(network(rainy), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_published_tensor_matters() -> None:
    """Each tensor of the key table reaches its own place: changing it alone changes the output, but PR.weight."""
    state = plain_dargnet.random_published_state(2)
    rainy = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    network = DARGNet()
    with torch.no_grad():
        unchanged = plain_dargnet.dargnet(state, rainy)
    for key in state:
        changed = state | {key: state[key] + 0.05}
        network.load_state_dict(convert_state_dict(changed))
        with torch.no_grad():
            found = network(rainy)
            torch.testing.assert_close(found, plain_dargnet.dargnet(changed, rainy), rtol=0, atol=2e-5)
        assert ((found - unchanged).abs().max() < 1e-5) == (key == "PR.weight"), key


@pytest.mark.parametrize(
    "form",
    [
        *("ours", "published", "data parallel", "compiled", "both", "lightning", "training state", "GAN", "only one"),
        *("state_dict", "model_state_dict", "params", "params_ema"),
    ],
)
def test_load_network_takes(tmp_path: Path, form: str, network: DARGNet) -> None:
    state = network.state_dict()
    content = {
        "ours": state,
        "published": plain_dargnet.random_published_state(1),
        "data parallel": {f"module.{k}": v for k, v in state.items()},
        "compiled": {f"_orig_mod.{k}": v for k, v in state.items()},
        "both": {f"module._orig_mod.{k}": v for k, v in state.items()},
        "lightning": {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}},
        "training state": {"state_dict": state, "network": {k: v + 1 for k, v in state.items()}, "step": 3},
        "GAN": {f"netG.{k}": v for k, v in state.items()} | {"loss.window": torch.zeros(11)},
        "only one": {"model": {f"net.{k}": v for k, v in state.items()}, "optimizer": {"state": {}}, "epoch": 3},
        "model_state_dict": {"model_state_dict": state},
        "state_dict": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        "params": {"params": state},
        "params_ema": {"params": {k: v + 1 for k, v in state.items()}, "params_ema": state},
    }[form]
    torch.save(content, tmp_path / "weights.pth")
    loaded = load_network(tmp_path / "weights.pth")
    assert not loaded.training
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("kind", ["nested", "block", "holds a DARGNet", "weight"])
def test_prefixes_of_networks_whose_names_repeat(tmp_path: Path, kind: str) -> None:
    """A key may end as the network's first one does."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            if kind != "weight":
                self.conv = nn.Conv2d(3, 3, 1)
            if kind == "block":
                self.block = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1)})
            if kind == "holds a DARGNet":
                self.head, self.net = nn.Sequential(nn.Conv2d(3, 3, 1)), DARGNet(4, 1)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1))) if kind == "nested" else Named()

    state = {f"module.{key}": value + 1 for key, value in build().state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    for key, value in load_network(tmp_path / "weights.pth", build()).state_dict().items():
        assert torch.equal(value, state[f"module.{key}"])


def test_parts_that_are_left_out_are_named(
    tmp_path: Path, network: DARGNet, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"net.{key}": value for key, value in network.state_dict().items()}
    torch.save(state | {"refine.weight": torch.ones(1), "refine.bias": torch.ones(1)}, tmp_path / "weights.pth")
    load_network(tmp_path / "weights.pth")
    line = "weights: 2 tensors without the prefix net. are left out, such as refine.weight"
    assert capsys.readouterr().out == f"{line}\n"


def test_load_network_builds_the_size_in_the_file(tmp_path: Path) -> None:
    small = DARGNet(channels=8, groups=2)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    loaded = load_network(tmp_path / "small.pth")
    assert len(loaded.groups) == 2
    assert loaded.head[0].out_channels == 8


def test_safetensors_of_another_type(tmp_path: Path, network: DARGNet) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="an extra requirement")
    state = {key: value.half() for key, value in network.state_dict().items()}
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    for key, value in load_network(tmp_path / "weights.safetensors").state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1594831\n",
            "Git LFS pointer: run git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html>", "a web page: download the file itself"),
        (b"PK\x03\x04 a repository", "a zip archive"),
        (b"", "download it again"),
    ],
)
def test_files_that_only_look_like_weights_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.pth: not a readable weights file.*{message}"):
        load_network(tmp_path / "weights.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    network = DARGNet(4, 1)
    network.groups[0].conv.weight.data[0, 0, 0, 0] = value
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"groups\.0\.conv\.weight has values that are not finite"):
        load_network(tmp_path / "weights.pth")


def test_load_network_takes_a_network_of_ones_own(tmp_path: Path) -> None:
    first, second = (torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)) for _ in range(2))
    torch.save(first.state_dict(), tmp_path / "own.pth")
    assert load_network(tmp_path / "own.pth", second) is second
    assert torch.equal(first[0].weight, second[0].weight)
    with pytest.raises(ValueError, match=r"not Sequential weights: missing 0\.weight"):
        torch.save(DARGNet(4, 1).state_dict(), tmp_path / "other.pth")
        load_network(tmp_path / "other.pth", second)


@pytest.mark.parametrize("name", ["model", "network", "module", "conv1"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_names_of_a_network_of_ones_own_stay(tmp_path: Path, name: str, prefix: str) -> None:
    """They may begin as wrappers' prefixes or the published names do."""

    def build() -> torch.nn.Module:
        layers = {name: torch.nn.Conv2d(3, 3, 3)} | ({"block1": torch.nn.Conv2d(3, 3, 3)} if name == "conv1" else {})
        return torch.nn.ModuleDict(layers)

    saved = build()
    torch.save({prefix + key: value for key, value in saved.state_dict().items()}, tmp_path / "own.pth")
    loaded = load_network(tmp_path / "own.pth", build())
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items())


def _break(state: dict[str, torch.Tensor], how: str) -> object:
    first = next(iter(state))
    return {
        "missing": {k: v for k, v in state.items() if k != first},
        "unknown": state | {"extra.weight": torch.zeros(1)},
        "shape": state | {first: torch.zeros(32, 3, 5, 5)},
        "foreign": {"encoder.0.weight": torch.zeros(4, 4)},
        "list": [1, 2, 3],
        "numbers": {1: torch.zeros(1)},
        "no channels": state | {first: torch.zeros(0, 3, 3, 3)},
        "empty": {},
        "whole numbers": {k: v.int() for k, v in state.items()},
        "complex": state | {first: state[first].to(torch.complex64)},
        "two networks": {f"{name}.{k}": v for k, v in state.items() for name in "ab"},
        "two mappings": {"a": state, "b": state},
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing head\.0\.weight"),
        ("unknown", r"unknown extra\.weight"),
        ("shape", r"head\.0\.weight is \(32, 3, 5, 5\), not \(32, 3, 3, 3\)"),
        ("foreign", "missing .* more"),
        ("list", "no state dict"),
        ("numbers", "no state dict"),
        ("no channels", r"head\.0\.weight is \(0, 3, 3, 3\)"),
        ("empty", "no state dict"),
        ("whole numbers", r"head\.0\.weight is torch\.int32"),
        ("complex", r"head\.0\.weight is torch\.complex64"),
        ("two networks", r"missing head\.0\.weight"),
        ("two mappings", "no state dict .* but a, b; name another"),
    ],
)
def test_foreign_weights_are_refused_with_the_differences(tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(_break(DARGNet().state_dict(), how), path)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_checkpoint_cannot_run_code(tmp_path: Path, writer: str) -> None:
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    content = {"conv1.0.weight": Malicious(trap)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="not a readable weights file"):
        load_network(path)
    assert not trap.exists()


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(DARGNet().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"weights\.pth: not a readable"):
        load_network(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_network(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("channels", "groups", "radius"), [pytest.param(32, 5, 60, marks=pytest.mark.slow), (4, 1, 16), (4, 2, 27)]
)
def test_receptive_field_is_exact(channels: int, groups: int, radius: int) -> None:
    """The gradient of the middle pixel reaches `radius` pixels in every direction, and not one further."""
    torch.manual_seed(0)
    network = DARGNet(channels, groups).double()
    for parameter in network.parameters():  # nothing may cancel
        parameter.data.abs_()
    assert receptive_field_radius(network) == radius
    side = 2 * radius + 5
    rainy = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    network(rainy)[0, :, side // 2, side // 2].sum().backward()
    seen = rainy.grad[0].abs().sum(0) > 0
    rows, columns = torch.nonzero(seen.any(1))[:, 0], torch.nonzero(seen.any(0))[:, 0]
    for line in (rows, columns):
        assert (line.min().item(), line.max().item()) == (side // 2 - radius, side // 2 + radius)


@pytest.mark.parametrize(
    ("network", "radius"),
    [
        (torch.nn.Conv2d(3, 3, (1, 5), padding=(0, 2)), 2),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=4, dilation=4), torch.nn.ReLU()), 4),
        (torch.nn.Identity(), 0),
        (torch.nn.AdaptiveAvgPool2d(1), None),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.InstanceNorm2d(3)), None),
        (torch.nn.Sequential(torch.nn.MaxPool2d(2, ceil_mode=True), torch.nn.Upsample(scale_factor=2)), None),
        (torch.nn.Conv2d(3, 3, 3), None),
        (DARGNet(2, 50), None),
    ],
)
def test_receptive_field_of_other_networks(network: torch.nn.Module, radius: int | None) -> None:
    """None for what can't be tiled: pooling, strides, a size that changes, a reach beyond 512 pixels."""
    assert receptive_field_radius(network.train()) == radius
    assert network.training
