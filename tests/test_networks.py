"""The network is the paper's: size, published names, arithmetic, receptive field."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain_dargnet
from networks import DARGNet, PReLU, convert_state_dict, load_network


def test_size() -> None:
    ours = sum(p.numel() for p in DARGNet().parameters())
    assert ours == 387_495  # every number that a layer uses
    shapes = plain_dargnet.published_shapes()
    stored = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert (stored, len(shapes)) == (ours + 1, 170)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        DARGNet()(torch.zeros(1, 3, 8, 8))
    macs = counter.get_total_flops() / 2
    assert macs / 64 * 481 * 321 / 1e9 == pytest.approx(62.69, abs=0.005)


def test_other_shapes_are_an_error(network: DARGNet) -> None:
    assert network(torch.rand(2, 3, 1, 7)).shape == (2, 3, 1, 7)
    for shape in ((3, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="N, 3, H, W"):
            network(torch.zeros(shape))


def test_published_weights_give_the_plain_formulation(tmp_path: Path) -> None:
    state = plain_dargnet.random_published_state()
    torch.save(state, tmp_path / "published.pth")
    network = load_network(tmp_path / "published.pth")
    rainy = torch.rand(2, 3, 37, 45, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain_dargnet.dargnet(state, rainy)
        assert expected.std() > 0.05  # large enough to show an error
        torch.testing.assert_close(network(rainy), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_published_tensor_reaches_its_place() -> None:
    """Changing one tensor alone changes the output as in the plain formulation; PR.weight never."""
    state = plain_dargnet.random_published_state(2)
    rainy = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    network = DARGNet()
    with torch.no_grad():
        unchanged = plain_dargnet.dargnet(state, rainy)
        for key in state:
            changed = state | {key: state[key] + 0.05}
            network.load_state_dict(convert_state_dict(changed))
            found = network(rainy)
            expected = plain_dargnet.dargnet(changed, rainy)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
            assert ((found - unchanged).abs().max() < 1e-5) == (key == "PR.weight"), key


@pytest.mark.parametrize(("channels", "groups", "radius"), [(2, 5, 60), (4, 1, 16)])
def test_receptive_field_is_exact(channels: int, groups: int, radius: int) -> None:
    """The gradient of the middle pixel reaches `radius` pixels in each direction and no further."""
    torch.manual_seed(0)
    network = DARGNet(channels, groups).double()
    assert network.receptive_field == radius
    for parameter in network.parameters():  # nothing may cancel
        parameter.data.abs_()
    side = 2 * radius + 5
    rainy = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    network(rainy)[0, :, side // 2, side // 2].sum().backward()
    seen = rainy.grad[0].abs().sum(0) > 0
    for axis in (0, 1):
        places = seen.any(axis).nonzero()
        assert (places.min().item(), places.max().item()) == (2, side - 3)


# ---------------------------------------------------------------- the PReLU


@pytest.mark.parametrize(("slope", "count"), [(0.25, 1), (-0.1, 1), (0.3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_prelu_is_torchs_prelu(slope: float, count: int, dtype: torch.dtype) -> None:
    """Output and both gradients; bfloat16 through autocast, as in training."""
    bf16 = dtype == torch.bfloat16
    images = torch.arange(2 * 3 * 9 * 11, dtype=torch.float64).sin().view(2, 3, 9, 11).to(dtype)
    weights = torch.linspace(0, 1, images.numel()).view_as(images).to(dtype)
    results = []
    for module in (nn.PReLU(count, slope), PReLU(count, slope)):
        module = module.to(torch.float32 if bf16 else dtype)
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = module(x)
        y.backward(weights)
        results.append((y.detach(), x.grad, module.weight.grad))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2 if bf16 else 1e-5, atol=1e-5)


def test_a_compiled_network_trains_alike() -> None:
    rainy, gradients = torch.rand(1, 3, 9, 8), []
    network = DARGNet(4, 1)
    for form in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        network.zero_grad()
        form(rainy).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------- weights

STATE = DARGNet(8, 2).state_dict()
PUBLISHED = plain_dargnet.random_published_state()
FIRST = "head.0.weight"
ONE = torch.ones(1)


def wrap(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


FORMS = {  # name: (content, number of tensors that are left out)
    "ours": (STATE, 0),
    "published": (wrap("module.", PUBLISHED), 0),
    "compiled": (wrap("module._orig_mod.", STATE), 0),
    "half": ({"net": {key: value.half() for key, value in STATE.items()}}, 0),
    "epoch": (STATE | {"epoch": 12}, 0),
    "training state": ({"state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": ONE}}}}, 1),
    "thop": (STATE | {"total_ops": ONE, "groups.0.total_params": ONE}, 2),
    "averaged": (wrap("module.", STATE) | {"n_averaged": ONE}, 1),
    "ema": ({"g": {key: value + 1 for key, value in STATE.items()}, "g_ema": STATE}, len(STATE)),
    "GAN": ({"g": STATE, "d": {"conv.weight": ONE}}, 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Wrapped state dicts load; a line counts the tensors that are not the network's."""
    path = tmp_path / "weights.pth"
    content, left_out = FORMS[name]
    torch.save(content, path)
    network = load_network(path)
    assert not network.training
    expected = convert_state_dict(PUBLISHED) if name == "published" else STATE
    loaded = network.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-3 * (name == "half"))
    line = f"{path}: {left_out} tensors" if left_out else ""
    printed = capsys.readouterr().out
    assert printed.startswith(line)
    assert printed.count("\n") == (left_out > 0)


@pytest.mark.parametrize("name", ["module", "conv1"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_of_ones_own_keeps_its_names(tmp_path: Path, name: str, prefix: str) -> None:
    """They may look like a wrapper's prefix or a published name, and repeat inside the network."""

    def build() -> nn.Module:
        inner = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
        return nn.ModuleDict({name: nn.Conv2d(3, 3, 3), "inner": nn.ModuleDict({name: inner})})

    saved, network = build().state_dict(), build()
    torch.save(wrap(prefix, saved), tmp_path / "own.pth")
    assert load_network(tmp_path / "own.pth", network) is network
    loaded = network.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in saved.items())


class Malicious:
    """Unpickling this would end the tests."""

    def __reduce__(self) -> tuple:
        return sys.exit, ()


FOREIGN = {  # name: (a file's bytes or what is saved in it, a word of the message)
    "web page": (b"<!DOCTYPE html>\n<html>", "<!DOCTYPE html>.*download the file again"),
    "cut off": (b"PK\x03\x04", r"PK\\x03\\x04"),
    "empty": (b"", "b''"),
    "code": ({FIRST: Malicious()}, "download the file again"),
    "missing": ({key: value for key, value in STATE.items() if key != FIRST}, FIRST),
    "another conv": (STATE | {"groups.1.conv.conv.weight": ONE}, r"Unexpected.*conv\.conv"),
    "another layer": (STATE | {"refine.weight": ONE}, "refine.weight"),
    "shape": (STATE | {FIRST: torch.zeros(8, 3, 5, 5)}, FIRST),
    "no shape": (STATE | {FIRST: torch.tensor(1.0)}, "0-d tensor"),
    "foreign": ({"encoder.0.weight": torch.zeros(4, 4)}, FIRST),
    "list": ([1, 2, 3], "state dict"),
    "no tensors": ({"epoch": 3}, FIRST),
    "integers": ({key: value.int() for key, value in STATE.items()}, FIRST),
    "nan": (STATE | {FIRST: STATE[FIRST] * float("nan")}, f"{FIRST}.*finite"),
    "infinite": (STATE | {FIRST: STATE[FIRST].double() * 1e300}, f"{FIRST}.*finite"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_weights_are_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.pth"
    content, word = FOREIGN[name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=word) as caught:
        load_network(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400
