"""Cut images that show clean and rainy side by side, as Rain800's, into folders rainy/ and clean/.

    python -m derain.halves my/Rain800/test --out datasets/test/Rain800

Rain brightens: the half that is darker in at least nine of ten images is taken for the clean one; --clean says so.
"""

import dataclasses
from pathlib import Path

import numpy as np

from derain.cli import check_folder, run_script, setting
from derain.images import DecodedImage, read_rgb, write_image
from derain.pairs import images_in
from derain.results import refuse_same_names
from utils import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    folder: tuple[Path, ...] = setting((), "folder of images with two halves", positional=True)
    clean: str = setting("auto", "which half is clean; auto: the darker one", ("auto", "left", "right"))
    out: Path | None = setting(None, "folder for rainy/ and clean/")


def cut(settings: Settings) -> None:
    """Write every image's halves as PNG, under its name. Raises InputError before anything is written."""
    if len(settings.folder) != 1 or settings.out is None:
        raise InputError("give one folder of images, and --out for the folder that gets rainy/ and clean/")
    check_folder(settings.out, "--out")
    if settings.out.exists() and any(settings.out.iterdir()):
        raise InputError(f"{settings.out}: is not empty; choose another --out")
    paths, clean = images_in(settings.folder[0]), settings.clean
    refuse_same_names(paths, [f"{path.stem}.png" for path in paths], "rename one")
    images = {path: read_rgb(path) for path in paths}
    for path, image in images.items():
        if image.shape[1] % 2:
            raise InputError(f"{path}: {image.shape[1]} pixels wide, which makes no two halves; remove it")
    halves = {path: np.split(image, 2, axis=1) for path, image in images.items()}
    if clean == "auto":
        darker = float(np.mean([left.mean() < right.mean() for left, right in halves.values()]))
        if 0.1 < darker < 0.9:
            raise InputError(f"{settings.folder[0]}: neither half is always darker; say --clean left or --clean right")
        clean = "left" if darker > 0.5 else "right"
    sides = ("clean", "rainy") if clean == "left" else ("rainy", "clean")
    for path, both in halves.items():
        for side, image in zip(sides, both, strict=True):
            write_image(settings.out / side / f"{path.stem}.png", DecodedImage(np.ascontiguousarray(image)))
    print(f"{settings.out}: {len(halves)} pairs, clean images from the {clean} half")


if __name__ == "__main__":
    run_script(cut, Settings(), __doc__)
