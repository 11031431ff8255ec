"""Write a trained network for use elsewhere: as ONNX, or its weights as safetensors.

    pip install -r requirements-extra.txt
    python -m derain.export --logdir logs/Rain100H --out dargnet.onnx            # about a minute on two CPU cores
    python -m derain.export --logdir logs/Rain100H --out dargnet.safetensors

The suffix decides. ONNX takes rainy images (N, 3, H, W), float32 RGB in [0, 1], of any number and size, and gives
derained ones. Every file is read back and checked against the network on three sizes before it is kept.
"""

import contextlib
import copy
import dataclasses
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from derain.cli import check_folder, run_script, setting
from derain.inference import load_weights
from derain.optimized import AsWritten, fold, optimize
from networks import DARGNet
from utils import InputError, atomic_path

TOLERANCE = 1e-4  # largest difference from the network
CHECKED = ((1, 33, 47), (2, 100, 64), (1, 5, 7))  # N, H, W


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    out: Path = setting(Path("dargnet.onnx"), "file to write: .onnx or .safetensors")


def export_onnx(network: DARGNet, path: Path) -> Callable[[Tensor], Tensor]:
    """Write `path` and return a function that runs it in ONNX Runtime."""
    import onnxruntime
    import onnxscript  # noqa: F401, which torch's exporter needs

    edited = isinstance(optimize(network), AsWritten)  # folding would write the published formula
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        varying = {0: "images", 2: "height", 3: "width"}
        torch.onnx.export(
            network if edited else fold(network, blocks=False),
            (torch.rand(2, 3, 64, 80),),
            str(path),
            dynamo=True,
            dynamic_shapes={"rainy": {axis: torch.export.Dim(name) for axis, name in varying.items()}},
            external_data=False,
            input_names=["rainy"],
            output_names=["derained"],
        )
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda rainy: torch.from_numpy(session.run(None, {"rainy": rainy.numpy()})[0])


def export_safetensors(network: DARGNet, path: Path) -> Callable[[Tensor], Tensor]:
    """Write `path` and return a network with the weights that are read back from it."""
    from safetensors.torch import load, save

    path.write_bytes(save(network.state_dict()))
    reread = copy.deepcopy(network)
    reread.load_state_dict(load(path.read_bytes()))
    return reread


@torch.inference_mode()
def check(network: DARGNet, run: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference between what was written and the network, over CHECKED sizes."""
    differences = []
    for images, height, width in CHECKED:
        rainy = torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(height))
        differences.append((run(rainy) - network(rainy)).abs().max())
    return torch.stack(differences).max().item()  # nan if one is: Python's max would drop it


def export(settings: Settings) -> None:
    """Write the file and check it; leave nothing if that fails."""
    network = load_weights(settings.logdir)
    writers = {".onnx": export_onnx, ".safetensors": export_safetensors}
    if settings.out.suffix not in writers:
        raise InputError(f"{settings.out}: the suffix decides what is written: {' or '.join(writers)}")
    check_folder(settings.out.parent, "--out")
    try:
        with atomic_path(settings.out) as temporary:
            difference = check(network, writers[settings.out.suffix](network, temporary))
            if not difference <= TOLERANCE:  # nan is not, either
                problem = f"differs from the network by {difference:.1e}"
                raise InputError(f"{settings.out}: {problem}; another torch may help")
    except ImportError as error:
        raise InputError(f"{settings.out}: needs {error.name}: pip install -r requirements-extra.txt") from error
    print(f"{settings.out}: at most {difference:.1e} from the network on {len(CHECKED)} sizes")


if __name__ == "__main__":
    run_script(export, Settings(), __doc__)
