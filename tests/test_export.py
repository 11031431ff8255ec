"""The network elsewhere: torch.hub, ONNX, safetensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command, one_error

import hubconf
from derain import export
from networks import DARGNet, load_network
from utils import InputError

NET = "net_latest.pth"


@pytest.mark.slow
def test_torch_hub_in_a_program_with_modules_of_its_own(tmp_path: Path) -> None:
    """Many deraining repositories have a networks.py and a utils.py; a hub network pickles."""
    (tmp_path / "networks.py").write_text("class PReNet: pass")
    (tmp_path / "utils.py").write_text("")
    (tmp_path / "main.py").write_text(f"""
import sys, pickle, torch
network = torch.hub.load({str(ROOT)!r}, "dargnet", source="local", rain="light")
assert not {{"networks", "utils", "derain", "cv2"}} & set(sys.modules)
assert pickle.loads(pickle.dumps(network))(torch.zeros(1, 3, 9, 7)).shape == (1, 3, 9, 7)
import networks, utils
assert hasattr(networks, "PReNet")
""")
    subprocess.run([sys.executable, "main.py"], check=True, cwd=tmp_path)


def test_hub_has_weights_for_each_rain_and_takes_a_file(weights: Path) -> None:
    for rain, name in (("any", "real"), ("heavy", "Rain100H"), ("light", "Rain100L")):
        expected = load_network(ROOT / "logs" / name / "net_latest.pth").state_dict()
        found = hubconf.dargnet(rain).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert len(hubconf.dargnet(weights=str(weights / NET)).groups) == 1
    with pytest.raises(ValueError, match="light, heavy"):
        hubconf.dargnet(rain="snow")


@pytest.mark.slow
def test_the_onnx_file_gives_the_same_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by ONNX Runtime, on images of another number and size than the exporter's example."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="an extra requirement")
    runtime = pytest.importorskip("onnxruntime", reason="an extra requirement")
    out = tmp_path / "out" / "dargnet.onnx"
    export.export(export.Settings(logdir=weights, out=out))
    with monkeypatch.context() as patch, pytest.raises(InputError, match="differs"):
        patch.setattr(export, "optimize", lambda _: torch.nn.Sequential(DARGNet(4, 1)).eval())
        export.export(export.Settings(logdir=weights, out=out))
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    session = runtime.InferenceSession(str(out))
    network = load_network(weights / NET)
    for shape in ((3, 3, 21, 38), (1, 3, 5, 7)):
        rainy = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = network(rainy)
        assert expected.std() > 0.01  # so that a constant image would be noticed
        (found,) = session.run(["derained"], {"rainy": rainy.numpy()})
        assert (torch.from_numpy(found) - expected).abs().max() < 1e-4


def test_safetensors_load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors.torch", reason="an extra requirement")
    network, out = DARGNet(4, 2), tmp_path / "net.safetensors"
    network.groups[1] = network.groups[0]  # an edited network may share layers
    monkeypatch.setattr(export, "load_weights", lambda _: network)
    export.export(export.Settings(out=out))
    found, expected = load_network(out).state_dict(), network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", ["onnx", "safetensors", "pt"])
def test_bad_exports(
    inline: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """A package is missing, or the suffix is unknown: one line says so."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    result = inline("derain.export", "--logdir", weights, "--out", f"net.{suffix}")
    one_error(result, suffix, "must end with" if suffix == "pt" else "pip install")
    assert not list(tmp_path.glob("net.*"))
