"""The network elsewhere: torch.hub, ONNX, safetensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from derain import export
from networks import DARGNet, load_network
from utils import InputError


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a narrow DARGNet, quick to export."""
    torch.manual_seed(0)
    torch.save(DARGNet(channels=4, groups=1).state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.slow
def test_torch_hub_from_a_local_clone_imports_networks_alone() -> None:
    code = f"""
import sys, torch
network = torch.hub.load({str(ROOT)!r}, "dargnet", source="local", rain="light")
assert network(torch.zeros(1, 3, 9, 7)).shape == (1, 3, 9, 7)
assert not {{"networks", "utils", "derain", "cv2"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


@pytest.mark.slow
def test_torch_hub_in_a_program_with_modules_of_its_own(tmp_path: Path) -> None:
    """Many deraining repositories have a networks.py and a utils.py."""
    (tmp_path / "networks.py").write_text("class PReNet: pass")
    (tmp_path / "utils.py").write_text("")
    (tmp_path / "main.py").write_text(f"""
import networks, utils, torch
network = torch.hub.load({str(ROOT)!r}, "dargnet", source="local", rain="light")
assert network(torch.zeros(1, 3, 9, 7)).shape == (1, 3, 9, 7)
import networks, utils
assert hasattr(networks, "PReNet")
""")
    subprocess.run([sys.executable, "main.py"], check=True, cwd=tmp_path)


@pytest.mark.parametrize(("rain", "name"), [("heavy", "Rain100H"), ("light", "Rain100L")])
def test_hub_has_the_weights_for_each_rain(rain: str, name: str) -> None:
    import hubconf

    expected = load_network(ROOT / "logs" / name / "net_latest.pth").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in hubconf.dargnet(rain).state_dict().items())


def test_hub_takes_a_file_and_refuses_nonsense(weights: Path) -> None:
    import hubconf

    assert sum(p.numel() for p in hubconf.dargnet(weights=str(weights)).parameters()) < 10_000
    with pytest.raises(ValueError, match="heavy"):
        hubconf.dargnet(rain="snow")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx"])
def test_exported_networks_give_the_same_images(
    weights: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command checks three sizes itself; here the check is checked, and nothing but the file is left."""
    if suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason="an extra requirement")
    out = tmp_path / "out" / f"dargnet{suffix}"
    export.export(export.Settings(logdir=weights, out=out))
    assert "on 3 sizes" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_wrong_export_is_not_kept(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "export_onnx", lambda network, path: lambda rainy: network(rainy) + 1e-3)
    with pytest.raises(InputError, match=r"differs from the network by 1\.0e-03"):
        export.export(export.Settings(logdir=weights, out=tmp_path / "out/dargnet.onnx"))
    assert list((tmp_path / "out").iterdir()) == []


def test_safetensors(weights: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="an extra requirement")
    export.export(export.Settings(logdir=weights, out=tmp_path / "net.safetensors"))
    found, expected = safetensors.load_file(tmp_path / "net.safetensors"), load_network(weights).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_cannot_be_exported(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="suffix"):
        export.export(export.Settings(logdir=weights, out=tmp_path / "net.caffe"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"requirements-extra\.txt"):
        export.export(export.Settings(logdir=weights, out=tmp_path / "net.safetensors"))
