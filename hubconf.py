"""For torch.hub, from a clone or from GitHub; needs torch alone and downloads nothing of its own.

network = torch.hub.load("path/to/this/folder", "dargnet", source="local", rain="light")
derained = network(rainy)            # (N, 3, H, W) RGB in [0, 1] -> the same shape
"""

dependencies = ["torch"]


def dargnet(rain: str = "heavy", weights: str | None = None):
    """Return a DARGNet in eval mode on the CPU, with our weights for 'heavy' or 'light' rain, or with those of a file.

    weights: a .pth file, ours or the published ones. Raises ValueError for another rain or foreign weights,
    FileNotFoundError if there is no such file.
    """
    import importlib.util
    import sys
    from pathlib import Path

    folder = Path(__file__).resolve().parent
    # By its path and under a private name, because the caller may have another module `networks`.
    spec = importlib.util.spec_from_file_location("dargnet_networks", folder / "networks.py")
    networks = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # pickle looks there
    spec.loader.exec_module(networks)

    names = {"heavy": "Rain100H", "light": "Rain100L"}
    if rain not in names:
        raise ValueError(f"rain is 'heavy' or 'light', not {rain!r}")
    return networks.load_network(weights or folder / "logs" / names[rain] / "net_latest.pth")
