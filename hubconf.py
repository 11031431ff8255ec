"""For torch.hub, from a clone or from GitHub; needs torch alone and downloads nothing of its own.

network = torch.hub.load("path/to/this/folder", "dargnet", source="local", rain="light")
derained = network(rainy)            # (N, 3, H, W) RGB in [0, 1] -> the same shape
"""

dependencies = ["torch"]


def dargnet(rain: str = "heavy", weights: str | None = None):
    """A DARGNet in eval mode on the CPU: with our weights for 'heavy' or 'light' rain, or with those of a file.

    weights: a .pth file, ours or the published ones. Raises ValueError for another rain or foreign weights,
    FileNotFoundError if there is no such file.
    """
    from pathlib import Path

    from networks import load_network

    names = {"heavy": "Rain100H", "light": "Rain100L"}
    if rain not in names:
        raise ValueError(f"rain is 'heavy' or 'light', not {rain!r}")
    return load_network(weights or Path(__file__).resolve().parent / "logs" / names[rain] / "net_latest.pth")
