from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from branchy_tf.errors import BranchyError
from branchy_tf.serving import images


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def test_a_png_that_fits_is_read_as_it_is(tmp_path, colours):
    grey = save(tmp_path / "grey.png", colours[..., 0])
    rgb = save(tmp_path / "rgb.png", colours)
    read, notes = images.read([grey], (20, 30, 1))
    np.testing.assert_array_equal(read, colours[None, :, :, :1])
    assert notes == []
    read, notes = images.read([rgb, rgb], (20, 30, 3))
    np.testing.assert_array_equal(read, np.stack([colours, colours]))
    assert notes == []


def test_sides_of_any_size_are_kept(tmp_path, colours):
    path = save(tmp_path / "a.png", colours)
    assert images.read([path], (None, -1, 3))[0].shape == (1, 20, 30, 3)
    other = save(tmp_path / "b.png", colours[:10])
    with pytest.raises(BranchyError, match="differ in size"):
        images.read([path, other], (None, None, 3))


def test_what_does_not_fit_is_resized_and_said(tmp_path, colours):
    path = save(tmp_path / "a.png", colours)
    read, notes = images.read([path], (28, 14, 3))
    assert read.shape == (1, 28, 14, 3)
    (note,) = notes
    assert "resized from 30x20 to 14x28 (bilinear" in note
    # Colour by colour, it stays as bright as it was.
    np.testing.assert_allclose(read.mean((0, 1, 2)), colours.mean((0, 1)), atol=12)


def test_grey_becomes_rgb_and_the_reverse(tmp_path, colours):
    grey = save(tmp_path / "grey.png", colours[..., 0])
    read, (note,) = images.read([grey], (20, 30, 3))
    np.testing.assert_array_equal(read[0], np.repeat(colours[..., :1], 3, -1))
    assert note.endswith("made RGB.")
    rgb = save(tmp_path / "rgb.png", colours)
    read, (note,) = images.read([rgb], (20, 30, 1))
    luma = colours @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read[0, :, :, 0], luma, atol=1)
    assert note.endswith("made grey.")


def test_16_bits_keep_their_brightness(tmp_path):
    deep = np.arange(0, 2**16, 256, dtype=np.uint16).reshape(16, 16)
    path = save(tmp_path / "deep.png", deep)
    read, (note,) = images.read([path], (16, 16, 1))
    np.testing.assert_array_equal(read.ravel(), np.arange(256))
    assert "16 bits made 8" in note
    assert images.read([path], (16, 16, 3))[0].max() == 255


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_files_cut_short_are_named(tmp_path, colours, form):
    whole = io.BytesIO()
    Image.fromarray(colours).save(whole, form)
    path = tmp_path / "cut"
    for share in (0, 0.1, 0.5, 0.9):
        path.write_bytes(whole.getvalue()[: int(share * whole.getbuffer().nbytes)])
        with pytest.raises(BranchyError, match="cut cannot be read"):
            images.read([str(path)], (20, 30, 3))


def test_a_png_with_a_broken_chunk_is_named(tmp_path, colours):
    # Pillow finds this one only when it comes to the pixels.
    path = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    content = bytearray(pathlib.Path(save(path, noise)).read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\x00\x01\x02\x03"
    path.write_bytes(content)
    with pytest.raises(BranchyError, match="cannot be read"):
        images.read([str(path)], (28, 28, 1))


def test_other_formats_are_not_read(tmp_path, colours):
    path = save(tmp_path / "a.png", colours, format="BMP")
    with pytest.raises(BranchyError, match="expected a PNG or JPEG"):
        images.read([path], (20, 30, 3))


def test_a_model_of_other_channels_takes_no_files(tmp_path, colours):
    with pytest.raises(BranchyError, match="takes 5 channels"):
        images.read([save(tmp_path / "a.png", colours)], (20, 30, 5))
