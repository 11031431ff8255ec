"""The network elsewhere: torch.hub, ONNX, safetensors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from derain import export
from networks import DARGNet, DualAttention, load_network
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
import networks, utils, pickle, torch
network = torch.hub.load({str(ROOT)!r}, "dargnet", source="local", rain="light")
assert network(torch.zeros(1, 3, 9, 7)).shape == (1, 3, 9, 7)
assert pickle.loads(pickle.dumps(network))(torch.zeros(1, 3, 9, 7)).shape == (1, 3, 9, 7)
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
@pytest.mark.parametrize("edited", [False, True])
def test_the_exported_file_gives_the_same_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], edited: bool
) -> None:
    """Run by ONNX Runtime itself, on an image of another size than export's example; nothing else is left behind."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="an extra requirement")
    runtime = pytest.importorskip("onnxruntime", reason="an extra requirement")
    if edited:
        monkeypatch.setattr(DualAttention, "forward", lambda self, x: x + self.spatial(x))
    out = tmp_path / "out" / "dargnet.onnx"
    export.export(export.Settings(logdir=weights, out=out))
    assert "on 3 sizes" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    rainy = torch.rand(3, 3, 21, 38, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_network(weights)(rainy)
    assert expected.std() > 100 * export.TOLERANCE  # so that a constant image would be noticed
    (found,) = session.run(["derained"], {"rainy": rainy.numpy()})
    assert (torch.from_numpy(found) - expected).abs().max() < export.TOLERANCE


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
@pytest.mark.parametrize(("error", "said"), [(1e-3, "1.0e-03"), (float("nan"), "nan")])
def test_a_wrong_export_is_not_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: float, said: str
) -> None:
    """Wrong on one of the three sizes is enough."""

    def write(network: DARGNet, path: Path) -> Callable[[Tensor], Tensor]:
        return lambda rainy: network(rainy) + (error if len(rainy) == 2 else 0)

    monkeypatch.setattr(export, f"export_{suffix[1:]}", write)
    out = tmp_path / "out" / f"dargnet{suffix}"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with pytest.raises(InputError, match=rf"dargnet{suffix}: differs from the network by {said}"):
        export.export(export.Settings(logdir=weights, out=out))
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"older"]


def test_safetensors(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="an extra requirement")
    export.export(export.Settings(logdir=weights, out=tmp_path / "net.safetensors"))
    assert "at most 0.0e+00 from the network on 3 sizes" in capsys.readouterr().out
    found, expected = safetensors.load_file(tmp_path / "net.safetensors"), load_network(weights).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_safetensors_wrote_wrongly_are_noticed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="an extra requirement")
    save = safetensors.save
    monkeypatch.setattr(safetensors, "save", lambda state: save({name: 2 * value for name, value in state.items()}))
    with pytest.raises(InputError, match="differs from the network"):
        export.export(export.Settings(logdir=weights, out=tmp_path / "net.safetensors"))
    assert not (tmp_path / "net.safetensors").exists()


def test_what_cannot_be_exported(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="suffix"):
        export.export(export.Settings(logdir=weights, out=tmp_path / "net.caffe"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"requirements-extra\.txt"):
        export.export(export.Settings(logdir=weights, out=tmp_path / "net.safetensors"))
