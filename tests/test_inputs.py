"""Files with damaged bytes: each is read rightly or rejected in one line that names it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scene, write_pairs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from derain.images import read_image
from DerainDataset import DerainDataset, prepare
from networks import DARGNet, load_network
from utils import InputError

# The same examples everywhere; FUZZ=20 in the environment makes 20 times as many, others each time.
FUZZ = int(os.environ.get("FUZZ", "1"))
SUFFIXES = (".png", ".jpg", ".tif", ".bmp", ".webp", ".pth", ".h5")


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An image of each kind, weights, and a packed set, by suffix."""
    files = {}
    for suffix in SUFFIXES[:5]:
        file = io.BytesIO()
        Image.fromarray(scene(3, 12, 17)[0]).save(file, Image.registered_extensions()[suffix])
        files[suffix] = file.getvalue()
    file = io.BytesIO()
    torch.save(DARGNet(4, 1).state_dict(), file)
    files[".pth"] = file.getvalue()
    pairs = write_pairs(tmp_path_factory.mktemp("packed") / "pairs", 2)
    return files | {".h5": prepare(pairs).read_bytes()}


def read(path: Path) -> None:
    """Read a file as what its suffix says, and check what comes out."""
    if path.suffix == ".pth":
        assert isinstance(load_network(path), DARGNet)
    elif path.suffix == ".h5":
        for patches in DerainDataset(path, patch_size=16, stride=64):
            assert [np.shape(patch) for patch in patches] == [(3, 16, 16)] * 2
    else:
        assert read_image(path).rgb.ndim == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files(
    suffix: str, whole_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some bytes are changed, at places given as fractions, and often the end is cut off."""
    path = tmp_path_factory.mktemp("damaged") / f"pairs{suffix}"

    @given(
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
        st.one_of(st.just(1.0), st.floats(0, 1)),
    )
    @settings(max_examples=50 * FUZZ, derandomize=FUZZ == 1, deadline=None, phases=[Phase.generate])
    def damage_and_read(changes: list[tuple[float, int]], length: float) -> None:
        data = bytearray(whole_files[suffix])
        for place, value in changes:
            data[int(place * (len(data) - 1))] = value
        path.write_bytes(data[: int(length * len(data))])
        try:
            read(path)
        except (InputError, ValueError) as error:
            assert str(path) in str(error)

    damage_and_read()
