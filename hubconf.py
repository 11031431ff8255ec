"""The entry point of torch.hub. It needs only torch, and the weights are in this repository.

network = torch.hub.load("path/to/this/folder", "dargnet", source="local", rain="any")
derained = network(rainy)            # (N, 3, H, W) RGB in [0, 1] -> the same shape
"""

import importlib.util
import sys
from pathlib import Path

dependencies = ["torch"]
ROOT = Path(__file__).resolve().parent
WEIGHTS = {"any": "real", "light": "Rain100L", "heavy": "Rain100H"}  # rain -> folder in logs/


def dargnet(rain: str = "any", weights: str | None = None):
    """Return a DARGNet in eval mode on the CPU, with our weights for `rain` or those of a file.

    weights: a .pth file, ours or the published ones; others raise ValueError.
    """
    if rain not in WEIGHTS:
        raise ValueError(f"rain={rain!r}: must be one of {', '.join(WEIGHTS)}")
    # By its path and under a private name, because the caller may have another module `networks`.
    spec = importlib.util.spec_from_file_location("dargnet_networks", ROOT / "networks.py")
    networks = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # pickle looks there
    spec.loader.exec_module(networks)
    return networks.load_network(weights or ROOT / "logs" / WEIGHTS[rain] / "net_latest.pth")
