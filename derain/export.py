"""Write a trained network as ONNX, or its weights as safetensors: the suffix decides.

    pip install -r requirements-extra.txt
    python -m derain.export --logdir logs/real --out dargnet.onnx         # about a minute

The ONNX file takes rainy images (N, 3, H, W), float32 RGB in [0, 1], of any number and size, and
gives derained ones. It is kept only if ONNX Runtime gives the network's images with it.
"""

import dataclasses
import warnings
from pathlib import Path

import torch
from torch import nn

from derain.cli import check_folder, run_script, setting
from derain.inference import derain, load_weights, optimize
from utils import InputError, atomic_path


@dataclasses.dataclass(frozen=True)
class Settings:
    logdir: Path = setting(Path("logs/real"), "folder that holds net_latest.pth, or a file")
    out: Path = setting(Path("dargnet.onnx"), "file to write: .onnx or .safetensors")


def write_onnx(network: nn.Module, path: Path) -> None:
    """Write the network in its fastest form. Raises InputError if the file computes otherwise."""
    import onnxruntime
    import onnxscript  # noqa: F401, for torch's exporter

    example, rainy = torch.rand(2, 3, 64, 80), torch.rand(1, 3, 33, 47)
    options = {"input_names": ["rainy"], "output_names": ["derained"], "verbose": False}
    options["dynamic_shapes"] = [{0: "images", 2: "height", 3: "width"}]
    with warnings.catch_warnings(action="ignore"):
        model = optimize(network)
        torch.onnx.export(model, (example,), str(path), external_data=False, **options)
    session = onnxruntime.InferenceSession(path.read_bytes())
    (found,) = session.run(None, {"rainy": rainy.numpy()})
    if not torch.allclose(torch.from_numpy(found), derain(network, rainy), rtol=0, atol=1e-4):
        raise InputError("ONNX Runtime's image differs from the network's; try another torch")


def export(settings: Settings) -> None:
    """Write the file, or leave the one that was there."""
    suffix = settings.out.suffix
    if suffix not in (".onnx", ".safetensors"):
        raise InputError(f"--out {settings.out}: must end with .onnx or .safetensors")
    check_folder(settings.out.parent, "--out")
    network = load_weights(settings.logdir)
    with atomic_path(settings.out) as temporary:
        if suffix == ".onnx":
            write_onnx(network, temporary)
        else:
            from safetensors.torch import save_file

            tensors = network.state_dict().items()  # layers may share some
            save_file({name: tensor.clone() for name, tensor in tensors}, temporary)
    print(f"{settings.out}: written")


if __name__ == "__main__":
    run_script(export, Settings(), __doc__)
