from __future__ import annotations

import io
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from branchy_tf import images
from branchy_tf.errors import BranchyError


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def test_reads_a_fitting_png_unchanged(tmp_path, colours):
    grey = save(tmp_path / "grey.png", colours[..., 0])
    rgb = save(tmp_path / "rgb.png", colours)
    read, notes = images.read([grey], (20, 30, 1))
    np.testing.assert_array_equal(read, colours[None, :, :, :1])
    assert notes == []
    read, notes = images.read([rgb, rgb], (20, 30, 3))
    np.testing.assert_array_equal(read, np.stack([colours, colours]))
    assert notes == []


def test_keeps_sides_of_any_size(tmp_path, colours):
    path = save(tmp_path / "a.png", colours)
    assert images.read([path], (None, -1, 3))[0].shape == (1, 20, 30, 3)
    other = save(tmp_path / "b.png", colours[:10])
    with pytest.raises(BranchyError, match="differ in size"):
        images.read([path, other], (None, None, 3))


def test_resizes_what_does_not_fit_and_says_so(tmp_path, colours):
    path = save(tmp_path / "a.png", colours)
    read, notes = images.read([path], (28, 14, 3))
    assert read.shape == (1, 28, 14, 3)
    (note,) = notes
    assert "resized from 30x20 to 14x28 (bilinear" in note
    # Every colour keeps its brightness.
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
def test_names_truncated_files(tmp_path, colours, form):
    whole = io.BytesIO()
    Image.fromarray(colours).save(whole, form)
    path = tmp_path / "cut"
    for share in (0, 0.1, 0.5, 0.9):
        path.write_bytes(whole.getvalue()[: int(share * whole.getbuffer().nbytes)])
        with pytest.raises(BranchyError, match="cut cannot be read"):
            images.read([str(path)], (20, 30, 3))


def test_names_a_png_with_a_broken_chunk(tmp_path, colours):
    # Pillow notices this one only when it decodes the pixels.
    path = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    content = bytearray(pathlib.Path(save(path, noise)).read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\x00\x01\x02\x03"
    path.write_bytes(content)
    with pytest.raises(BranchyError, match="cannot be read"):
        images.read([str(path)], (28, 28, 1))


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "WEBP"])
def test_reads_other_common_formats(tmp_path, colours, form):
    options = {"lossless": True} if form == "WEBP" else {}
    path = save(tmp_path / "a", colours, format=form, **options)
    read, _ = images.read([path], (20, 30, 3))
    # A GIF has 256 colours.
    most = 60 if form == "GIF" else 0
    assert np.abs(read[0].astype(int) - colours).max() <= most


@pytest.mark.parametrize("form", ["PPM", "EPS", "ICO"])
def test_rejects_other_formats(tmp_path, colours, form):
    # For EPS, Pillow runs another program on the file's content.
    path = save(tmp_path / "a.png", colours, format=form)
    text = complaint([path], (20, 30, 3))
    assert "its format is unknown. Expected a PNG, JPEG, WebP, GIF, BMP or" in text


def complaint(paths, shape) -> str:
    with pytest.raises(BranchyError) as caught:
        images.read(paths, shape)
    text = str(caught.value)
    assert text.startswith(paths[0])
    assert text.isprintable()
    return text


# Transparency


@pytest.fixture
def stroke():
    """Black: opaque on the left, half transparent in the middle, clear on the right."""
    drawn = np.zeros((9, 9, 4), np.uint8)
    drawn[:, :3, 3] = 255
    drawn[:, 3:6, 3] = 128
    # Invisible red.
    drawn[:, 6:, 0] = 255
    return drawn


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("TIFF", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")],
)
def test_transparency_becomes_white(tmp_path, stroke, form, mode):
    if mode == "LA":
        stroke[..., 0] = 0
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    path = str(tmp_path / "a")
    Image.fromarray(stroke).convert(mode).save(path, form, **options)
    for channels in (1, 3):
        read, (note,) = images.read([path], (9, 9, channels))
        assert set(read[:, :, :3].flat) == {0}
        assert set(read[:, :, 3:6].flat) == {127}
        assert set(read[:, :, 6:].flat) == {255}
        assert "transparency made white" in note
    assert ("made grey" in images.read([path], (9, 9, 1))[1][0]) == (mode != "LA")


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP"])
def test_a_palette_may_have_a_transparent_colour(tmp_path, form):
    drawn = Image.new("P", (6, 4), 1)
    drawn.putpalette([200, 0, 0, 0, 0, 200])
    drawn.paste(0, (0, 0, 3, 4))
    options = {"lossless": True} if form == "WEBP" else {}
    drawn.save(tmp_path / "a", form, transparency=0, **options)
    if form == "WEBP":
        drawn.info["transparency"] = 0
        drawn.convert("RGBA").save(tmp_path / "a", form, **options)
    read, (note,) = images.read([str(tmp_path / "a")], (4, 6, 3))
    assert read[0, 0].tolist() == [[255] * 3] * 3 + [[0, 0, 200]] * 3
    assert "transparency made white" in note


def test_a_palette_may_have_half_transparent_colours(tmp_path):
    drawn = Image.new("P", (2, 1))
    drawn.putpalette([0, 0, 0, 0, 0, 0])
    drawn.putpixel((1, 0), 1)
    drawn.save(tmp_path / "a.png", transparency=bytes([255, 128]))
    read, _ = images.read([str(tmp_path / "a.png")], (1, 2, 1))
    assert read.ravel().tolist() == [0, 127]


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 0, 0)), ("1", 0)])
def test_one_colour_may_be_transparent(tmp_path, mode, colour):
    drawn = Image.new(mode, (4, 4), colour)
    # Not white, so that the change shows; 1-bit images have no other colour.
    drawn.paste("white" if mode == "1" else "black", (0, 0, 2, 4))
    drawn.paste(colour, (2, 0, 4, 4))
    drawn.save(tmp_path / "a.png", transparency=colour)
    if mode == "1":
        complaint([str(tmp_path / "a.png")], (4, 4, 3))
        return
    read, _ = images.read([str(tmp_path / "a.png")], (4, 4, 3))
    assert set(read[:, :, :2].flat) == {0}
    assert set(read[:, :, 2:].flat) == {255}


@pytest.mark.parametrize("colour", [255, 0])
def test_rejects_a_drawing_invisible_on_white(tmp_path, colour):
    drawn = np.full((28, 28, 4), colour, np.uint8)
    drawn[..., 3] = 0
    if colour:
        drawn[6:22, 12:16, 3] = 255
    path = save(tmp_path / "a.png", drawn)
    text = complaint([path], (28, 28, 1))
    assert "is transparent, and a single colour on a white background" in text


def test_opaque_alpha_changes_nothing(tmp_path, colours):
    solid = np.dstack([colours, np.full((20, 30), 255, np.uint8)])
    read, notes = images.read([save(tmp_path / "a.png", solid)], (20, 30, 3))
    np.testing.assert_array_equal(read[0], colours)
    assert notes == []
    # A single colour, but not because of transparency.
    flat = save(tmp_path / "flat.png", np.full((4, 4, 4), 255, np.uint8))
    assert images.read([flat], (4, 4, 3))[0].min() == 255


@pytest.mark.parametrize("colour", [(0x1234,), (0x1234, 0, 0xFFFF)])
def test_rejects_a_transparent_16_bit_colour(tmp_path, colour):
    depths = np.zeros((2, 2), np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(depths if len(colour) == 1 else np.zeros((2, 2, 3), np.uint8)).save(
        path
    )
    raw = path.read_bytes()
    chunk = b"tRNS" + b"".join(value.to_bytes(2, "big") for value in colour)
    at = raw.index(b"IDAT") - 4
    size, check = (len(chunk) - 4).to_bytes(4, "big"), zlib.crc32(chunk)
    path.write_bytes(raw[:at] + size + chunk + check.to_bytes(4, "big") + raw[at:])
    assert "declares a 16-bit colour transparent" in complaint([str(path)], (2, 2, 1))


# Depths, colour spaces, animations, EXIF, sizes


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "I;16"])
def test_reads_every_common_mode(tmp_path, mode):
    drawn = Image.new("L", (4, 2), 0)
    drawn.paste(255, (2, 0, 4, 2))
    if mode == "I;16":
        drawn = Image.fromarray(np.asarray(drawn).astype(np.uint16) * 257)
    form = {"YCbCr": "JPEG", "CMYK": "TIFF"}.get(mode, "PNG")
    drawn = drawn if mode == "I;16" else drawn.convert("RGB").convert(mode)
    drawn.save(tmp_path / "a", form)
    read, _ = images.read([str(tmp_path / "a")], (2, 4, 1))
    np.testing.assert_allclose(read[0, 0, :, 0], [0, 0, 255, 255], atol=1)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_rejects_values_that_are_not_pixels(tmp_path, dtype):
    path = save(tmp_path / "a.tif", np.ones((2, 2), dtype))
    assert "expected 8-bit or 16-bit pixels" in complaint([path], (2, 2, 1))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_reads_the_first_frame_of_an_animation_and_says_so(tmp_path, form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    path = str(tmp_path / "a")
    frames[0].save(path, form, save_all=True, append_images=frames[1:], **options)
    read, (note,) = images.read([path], (4, 4, 3))
    assert read[0, 0, 0].tolist() == [255, 0, 0]
    assert "first frame taken" in note


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_images_upright(tmp_path, form, orientation):
    quarters = np.zeros((32, 48), np.uint8)
    quarters[:16, :24], quarters[:16, 24:], quarters[16:, :24] = 250, 160, 80
    turn = images._TURNS.get(orientation)
    # The inverse of the turn that the reader applies.
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = inverse.get(orientation, turn)
    lying = Image.fromarray(quarters).convert("RGB")
    lying = lying if turn is None else lying.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    lying.save(tmp_path / "a", form, exif=exif, **options)
    read, _ = images.read([str(tmp_path / "a")], (32, 48, 1))
    assert np.abs(read[0, 8::16, 12::24, 0] - [[250, 160], [80, 0]]).max() <= 3


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0XX*\0\x08\0\0\0\x01\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0",
        # An orientation of 999, and one that is a string.
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\xe7\x03\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0ab\0\0\0\0\0\0",
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_reads_images_with_odd_exif(tmp_path, colours, exif, form):
    path = tmp_path / "a"
    options = {} if form == "JPEG" else {"lossless": True}
    Image.fromarray(colours).save(path, form, exif=exif, **options)
    read, notes = images.read([str(path)], (20, 30, 3))
    assert np.abs(read[0].astype(int) - colours).mean() < 60
    assert all("EXIF data unreadable" in note for note in notes)


def png_that_claims(width, height) -> bytes:
    start = struct.pack(">II5B", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + start
    pixels = b"IDAT" + zlib.compress(b"\0" * 99)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, pixels, b"IEND")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 10_000), (9_500, 11_000), (50_000, 50_000)]
)
def test_rejects_oversized_images(tmp_path, width, height, monkeypatch, recwarn):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(width, height))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    text = complaint([str(path)], (28, 28, 1))
    assert f"{width} x {height} pixels" in text or "exceeds limit" in text
    assert not recwarn.list


def test_rejects_an_image_without_pixels(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"GIF89a" + bytes([0, 0, 5, 0, 0, 0, 0]) + b";")
    complaint([str(path)], (28, 28, 1))
    path.write_bytes(png_that_claims(0, 5))
    complaint([str(path)], (28, 28, 1))


@pytest.mark.parametrize("error", [KeyError("odd\nthing"), struct.error(), MemoryError()])
def test_any_pillow_error_is_one_line(tmp_path, colours, monkeypatch, error):
    def load(self):
        raise error

    path = save(tmp_path / "a.png", colours)
    monkeypatch.setattr(Image.Image, "load", load)
    assert "cannot be read as an image: " in complaint([path], (20, 30, 3))


def test_rejects_files_for_a_model_of_other_channels(tmp_path, colours):
    with pytest.raises(BranchyError, match="takes 5 channels"):
        images.read([save(tmp_path / "a.png", colours)], (20, 30, 5))
