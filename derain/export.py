"""Write a trained network for use elsewhere: as ONNX, or its weights as safetensors.

    pip install -r requirements-extra.txt
    python -m derain.export --logdir logs/Rain100H --out dargnet.onnx         # about a minute
    python -m derain.export --logdir logs/Rain100H --out dargnet.safetensors

The suffix decides. The ONNX file takes rainy images (N, 3, H, W), float32 RGB in [0, 1], of any
number and size, and gives derained ones. ONNX Runtime must give the network's images with it.
"""

import dataclasses
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from derain.cli import check_folder, run_script, setting
from derain.inference import derain, load_weights, optimize
from utils import InputError, atomic_path


@dataclasses.dataclass(frozen=True)
class Settings:
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a file")
    out: Path = setting(Path("dargnet.onnx"), "file to write: .onnx or .safetensors")


def write_onnx(network: nn.Module, path: Path) -> None:
    """Write the network, folded unless it was edited. Raises InputError if it does not compute."""
    import onnxruntime
    import onnxscript  # noqa: F401, for torch's exporter

    model = optimize(network)
    axes = {0: Dim("images"), 2: Dim("height"), 3: Dim("width")}
    names = {"input_names": ["rainy"], "output_names": ["derained"]}
    options = {"dynamic_shapes": {"rainy": axes}, "external_data": False, "verbose": False}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(model, (torch.rand(2, 3, 64, 80),), str(path), **names, **options)

    session = onnxruntime.InferenceSession(path.read_bytes())
    rainy = torch.rand(1, 3, 33, 47)  # another number and size
    found = torch.from_numpy(session.run(None, {"rainy": rainy.numpy()})[0])
    if not torch.allclose(found, derain(network, rainy), rtol=0, atol=1e-4):
        raise InputError("ONNX Runtime's image differs from the network's; try another torch")


def export(settings: Settings) -> None:
    """Write the file, or leave the one that was there."""
    network = load_weights(settings.logdir)
    check_folder(settings.out.parent, "--out")
    try:
        with atomic_path(settings.out) as temporary:
            if settings.out.suffix == ".onnx":
                write_onnx(network, temporary)
            elif settings.out.suffix == ".safetensors":
                from safetensors.torch import save

                temporary.write_bytes(save(network.state_dict()))
            else:
                raise InputError(f"--out {settings.out}: must end with .onnx or .safetensors")
    except ImportError as error:
        fix = "pip install -r requirements-extra.txt"
        raise InputError(f"{settings.out}: needs {error.name}: {fix}") from error
    print(f"{settings.out}: written")


if __name__ == "__main__":
    run_script(export, Settings(), __doc__)
