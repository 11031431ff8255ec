"""Files with damaged bytes: each is read rightly or rejected in one line that names it."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scene, write_pairs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from derain.images import read_image
from DerainDataset import DerainDataset, prepare
from networks import DARGNet, load_network
from utils import InputError

# The same examples everywhere; FUZZ=20 in the environment makes 20 times as many, others each time.
FUZZ = int(os.environ.get("FUZZ", "1"))
CALM = {
    "deadline": None,
    "derandomize": FUZZ == 1,
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": list(HealthCheck),
    "max_examples": 100 * FUZZ,
}
DAMAGE = {
    "cuts": st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    "length": st.one_of(st.just(1.0), st.floats(0, 1)),
}


@contextlib.contextmanager
def damaged(name: str, whole: bytes, cuts: list, length: float) -> Iterator[Path]:
    """A file with some bytes changed, at places given as fractions, and the end cut off."""
    data = bytearray(whole)
    for place, value in cuts:
        data[int(place * (len(data) - 1))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data[: int(length * len(data))])
        yield path


@given(suffix=st.sampled_from([".png", ".jpg", ".tif", ".bmp", ".webp"]), **DAMAGE)
@settings(**CALM)
def test_damaged_images(suffix: str, cuts: list, length: float) -> None:
    whole = io.BytesIO()
    Image.fromarray(scene(3, 12, 17)[0]).save(whole, Image.registered_extensions()[suffix])
    with damaged(f"a{suffix}", whole.getvalue(), cuts, length) as path:
        try:
            assert read_image(path).rgb.ndim == 3
        except InputError as error:
            assert str(path) in str(error)


@pytest.fixture(scope="module")
def network_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(DARGNet(4, 1).state_dict(), buffer)
    return buffer.getvalue()


@given(**DAMAGE)
@settings(**CALM)
def test_damaged_weights(network_bytes: bytes, cuts: list, length: float) -> None:
    with damaged("net.pth", network_bytes, cuts, length) as path:
        try:
            assert isinstance(load_network(path), DARGNet)
        except ValueError as error:
            assert str(path) in str(error)


@pytest.fixture(scope="module")
def packed_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    return prepare(write_pairs(folder / "pairs", 2)).read_bytes()


@given(**DAMAGE)
@settings(**CALM)
def test_damaged_packed_sets(packed_bytes: bytes, cuts: list, length: float) -> None:
    with damaged("pairs.h5", packed_bytes, cuts, length) as path:
        try:
            data = DerainDataset(path, patch_size=16, stride=64)
            assert all(
                np.shape(image) == (3, 16, 16) for i in range(len(data)) for image in data[i]
            )
        except InputError as error:
            assert "pairs.h5" in str(error)
