"""From a photograph to a figure, one step after the other: rain it, derain it, measure it, show it.

    python -m examples.walk_through                                # writes results/walk_through.png
    python -m examples.walk_through --photo coffee --rain heavy    # another photograph, more rain

Read it beside its output. Each step calls what the test scripts call for it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from derain.cli import run_script, setting
from derain.figure import check_figure, crop_place, write_figure
from derain.inference import derain, optimize
from derain.synthesize import KINDS, add_rain, centre, free_photographs, rain_layer
from networks import load_network
from SSIM import image_metrics, psnr_y
from utils import InputError, quantize, to_image, to_tensor

ROOT = Path(__file__).parent.parent
WEIGHTS = {
    "light": ROOT / "logs/Rain100L/net_latest.pth",
    "heavy": ROOT / "logs/Rain100H/net_latest.pth",
}


@dataclass(frozen=True)
class Settings:
    photo: str = setting("chelsea", "the photograph", ("astronaut", "chelsea", "coffee", "rocket"))
    rain: str = setting("light", "the kind of rain, and of the weights against it", tuple(KINDS))
    size: int = setting(300, "width in pixels of the part that is used; two thirds as high")
    seed: int = setting(2, "another seed, another rain")
    out: Path = setting(Path("results/walk_through.png"), "the figure")


def walk(settings: Settings) -> None:
    """Print what each step gives, and write the figure."""
    if settings.size < 17:
        raise InputError(f"--size {settings.size}: must be at least 17, to fit SSIM's window")
    check_figure((), [settings.photo])

    # 1. A photograph that scikit-image ships. Images are (H, W, 3) uint8 RGB in all of this code.
    clean = centre(free_photographs()[settings.photo], settings.size * 2 // 3, settings.size)
    height, width, _ = clean.shape
    print(f"1. photograph  {settings.photo}, {width}x{height} pixels from its middle")

    # 2. Rain is one grey layer, added and clipped at white: it makes no pixel darker.
    layer = rain_layer(height, width, settings.rain, np.random.RandomState(settings.seed))
    rainy = add_rain(clean, layer)
    levels = f"{layer.mean():.1f} grey levels on average, {layer.max():.0f} at most"
    print(f"2. rain        {settings.rain}: {levels}")

    # 3. The paper's network with trained weights. optimize() makes it faster, with the same output.
    weights = WEIGHTS[settings.rain]
    network = optimize(load_network(weights))
    radius = network.receptive_field
    print(f"3. network     {weights.relative_to(ROOT)}; a pixel sees {radius} to each side")

    # 4. It maps (N, 3, H, W) float32 in [0, 1] to the same. Round, don't truncate, to 8 bits.
    derained = quantize(to_image(derain(network, to_tensor(rainy))))
    changed = np.mean(np.abs(derained.astype(int) - rainy).max(axis=2) > 4)
    print(f"4. derained    {changed:.0%} of the pixels changed by more than 4 grey levels")

    # 5. Two images have different scores on Y and on RGB: name the protocol whenever you print one.
    before, after = image_metrics(rainy, clean), image_metrics(derained, clean)
    for metric in before:
        print(f"5. {metric:11} {before[metric]:.4g} before, {after[metric]:.4g} after")

    # 6. A mean hides where a method fails: look closer where most rain lies over most detail.
    title = f"{settings.photo}, synthetic {settings.rain} rain"
    x, y, w = crop_place(rainy, clean)
    part = np.s_[y : y + w // 2, x : x + w]
    here = psnr_y(derained[part], clean[part])
    images = {"rainy": rainy, "derained": derained, "clean": clean}
    write_figure(settings.out, {title: images})
    scores = f"{here:.2f} dB (Y) within its crop, {after['psnr_y']:.2f} dB on the whole"
    print(f"6. figure      {settings.out}; {scores}")


if __name__ == "__main__":
    run_script(walk, Settings(), __doc__)
