"""From a photograph to a figure, one step after the other: rain it, derain it, measure it, show it.

    python -m examples.walk_through                                # writes results/walk_through.png
    python -m examples.walk_through --photo coffee --rain heavy    # another photograph, more rain

Read it beside its output. Each step calls what the test scripts call for it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from derain.cli import run_script, setting
from derain.figure import write_figure
from derain.inference import derain, load_weights, optimize
from derain.synthesize import add_rain, free_photographs, rain_layer
from SSIM import image_metrics
from utils import quantize, to_image, to_tensor

HEIGHT, WIDTH = 200, 300  # pixels of the photograph that are used
WEIGHTS = {"light": Path("logs/Rain100L"), "heavy": Path("logs/Rain100H")}


@dataclass(frozen=True)
class Settings:
    photo: str = setting("chelsea", "the photograph", ("astronaut", "chelsea", "coffee", "rocket"))
    rain: str = setting("light", "the kind of rain, and of the weights against it", tuple(WEIGHTS))
    out: Path = setting(Path("results/walk_through.png"), "the figure")


def walk(settings: Settings) -> None:
    """Print what each step gives, and write the figure."""
    # 1. A photograph that scikit-image ships. Images are (H, W, 3) uint8 RGB in all of this code.
    clean = free_photographs(HEIGHT, WIDTH)[settings.photo]
    print(f"1. photograph  {settings.photo}, {WIDTH}x{HEIGHT} pixels from its middle")

    # 2. Rain is one grey layer, added and clipped at white: it makes no pixel darker.
    layer = rain_layer(HEIGHT, WIDTH, settings.rain, np.random.RandomState(2))
    rainy = add_rain(clean, layer)
    print(f"2. rain        {settings.rain}: {layer.mean():.1f} grey levels on average")

    # 3. The paper's network with trained weights, in its fastest form, which has the same output.
    weights = WEIGHTS[settings.rain]
    network = optimize(load_weights(weights))
    print(f"3. network     {weights}; a pixel sees {network.receptive_field} to each side")

    # 4. It maps (N, 3, H, W) float32 in [0, 1] to the same. Round, don't truncate, to 8 bits.
    derained = quantize(to_image(derain(network, to_tensor(rainy))))
    changed = np.mean(np.abs(derained.astype(int) - rainy).max(axis=2) > 4)
    print(f"4. derained    {changed:.0%} of the pixels changed by more than 4 grey levels")

    # 5. Two images have different scores on Y and on RGB: name the protocol whenever you print one.
    before, after = image_metrics(rainy, clean), image_metrics(derained, clean)
    for metric in before:
        print(f"5. {metric:11} {before[metric]:.4g} before, {after[metric]:.4g} after")

    # 6. A mean hides where a method fails: the part with most rain over most detail is enlarged.
    images = {"rainy": rainy, "derained": derained, "clean": clean}
    write_figure(settings.out, {f"{settings.photo}, synthetic {settings.rain} rain": images})
    print(f"6. figure      {settings.out}")


if __name__ == "__main__":
    run_script(walk, Settings(), __doc__)
