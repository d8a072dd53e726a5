# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pictures of every mode and orientation to RGB, and one clear error for what is no picture."""

import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from xllm.processing.image_decoding import load_image
from xllm.processing.media_sources import MediaError


RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def encode(image, form="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def halves(size=(6, 2)):
    """Left half red, right half black."""
    image = Image.new("RGB", size, BLACK)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    return image


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must turn clockwise
    turned = load_image(encode(halves(), "PNG", exif=exif))
    assert turned.size == (2, 6)
    assert turned.getpixel((0, 0)) == RED
    assert turned.getpixel((0, 5)) == BLACK


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 128), (128, 128, 128)),
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), WHITE),
        (Image.new("LA", (2, 2), (0, 0)), WHITE),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), WHITE),
        (Image.fromarray(np.full((2, 2), 257, np.uint16)), (1, 1, 1)),
        (Image.fromarray(np.full((2, 2), 65535, np.int32)), WHITE),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), (128, 128, 128)),
        (Image.new("RGB", (2, 2), RED).convert("P"), RED),
    ],
)
def test_modes(image, expected):
    result = load_image(image)
    assert result.mode == "RGB"
    assert result.getpixel((1, 1)) == expected


def test_cmyk_jpeg_and_first_frame_of_an_animation():
    red = load_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.asarray(red, int) - RED).max() < 8
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLACK)]
    assert load_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == RED


def test_arrays_and_tensors():
    pixels = np.asarray(halves())
    for array in (
        pixels,
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels.copy()),
        pixels / 255.0,
        pixels.astype(np.int64),
    ):
        np.testing.assert_array_equal(np.asarray(load_image(array)), pixels)
    assert load_image(np.zeros((3, 5), np.uint8)).size == (5, 3)


def test_files_and_bytes(tmp_path):
    path = tmp_path / "picture without a known name"
    path.write_bytes(encode(halves()))
    for source in (
        path,
        str(path),
        path.as_uri(),
        path.read_bytes(),
        {"bytes": path.read_bytes(), "path": "gone.png"},
    ):
        np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(halves()))


BAD_FILES = {
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"\n<html><body>not found</body></html>", "an HTML page"),
    "text.png": (b"no picture" * 20, "not an image"),
    "half.png": (encode(Image.effect_noise((64, 64), 90))[:1500], "damaged"),
    "half.jpg": (encode(Image.effect_noise((64, 64), 90), "JPEG")[:900], "damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_line(tmp_path, name):
    data, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MediaError, match=reason) as caught:
        load_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked():
    data = bytearray(encode(Image.new("1", (64, 64))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height of the header
    with pytest.raises(MediaError):
        load_image(bytes(data))
    with pytest.raises(
        MediaError, match=r"20000 x 8000 pixels of mode 1 take 1\.2 GiB of memory, more than the limit"
    ):
        load_image(Image.new("1", (20_000, 8_000)))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((4, 4, 3), -1.5), "from -1.5 to -1.5"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.zeros((5, 5, 7)), "an image array has the shape"),
        (np.zeros((0, 4, 3)), "no pixels"),
    ],
)
def test_bad_arrays(array, reason):
    with pytest.raises(MediaError, match=reason):
        load_image(array)


class _Server(BaseHTTPRequestHandler):
    def do_GET(self):
        body = encode(halves())
        self.send_response(200 if self.path == "/picture" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Keeps the test's output clean."""


def test_http():
    server = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert load_image(f"{address}/picture").size == (6, 2)
        with pytest.raises(MediaError, match="the server answered 404"):
            load_image(f"{address}/gone")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(MediaError, match="cannot be downloaded"):
        load_image(f"{address}/picture")


def told(caplog):
    """The warnings, one line each."""
    return [record.getMessage() for record in caplog.records]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_flipped_bit_of_a_png_is_noticed_wherever_it_is(tmp_path, caplog):
    data = encode(Image.effect_noise((32, 32), 90))
    path, noticed = tmp_path / "a.png", 0
    for place in range(8, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        caplog.clear()
        try:
            picture = load_image(path)
        except MediaError:
            noticed += 1
        else:  # lengths of chunks, or the end mark: no pixel is hurt, and the file does not end where it says
            assert "cut off" in told(caplog)[0]
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(load_image(data)))
        path = tmp_path / f"{place}.png"  # a warning is said once
    assert noticed > 0.9 * len(range(8, len(data), 7))


def test_a_png_without_its_end_is_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.png"
    path.write_bytes(encode(halves())[:-12])
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(halves()))
    assert told(caplog) == [f"{path}: cut off: the end of the file is missing"]


TWELVE = np.array([[0, 1000, 4001], [2, 2048, 4095]], np.uint16)
SCALED = np.rint(TWELVE * (255 / 4095)).astype(np.uint8)


def twelve_bits(path, kind):
    """12 bits of 16, and what the file says of that."""
    image = Image.fromarray(TWELVE)
    tags = {"tiff": {341: 4095, 340: 0}, "tiff-max": {281: 4095}, "tiff-lie": {281: 255}}.get(kind)
    if tags is not None:
        image.save(path, "TIFF", tiffinfo=tags)
        return path
    data = encode(image)
    said = chunk(b"sBIT", bytes([12])) if kind == "sBIT" else b""
    path.write_bytes(data[:33] + said + data[33:])
    return path


@pytest.mark.parametrize("kind", ["tiff", "tiff-max", "sBIT"])
def test_twelve_bits_in_sixteen_are_scaled_where_the_file_says_so(tmp_path, kind, caplog):
    picture = load_image(twelve_bits(tmp_path / "a", kind))
    np.testing.assert_array_equal(np.asarray(picture)[..., 0], SCALED)
    assert told(caplog) == []


@pytest.mark.parametrize("kind", ["none", "tiff-lie"])
def test_twelve_bits_in_sixteen_are_named_where_it_does_not(tmp_path, kind, caplog):
    path = twelve_bits(tmp_path / "a", kind)
    assert np.asarray(load_image(path)).max() == 16
    assert f"{path}: its 16-bit pixels run from 0 to 4095 of 65535, and become nearly black" in told(caplog)[-1]
    assert len(told(caplog)) == (2 if kind == "tiff-lie" else 1)


def test_significant_bits_of_samples_that_are_scaled_change_nothing(tmp_path, caplog):
    """As the PNG specification wants it; a dark picture stays dark."""
    data = encode(Image.fromarray((TWELVE // 16 << 4).astype(np.uint16)))
    picture = load_image(data[:33] + chunk(b"sBIT", bytes([12])) + data[33:])
    assert np.asarray(picture).max() == 16


def test_dark_colours_of_sixteen_bits_are_named(caplog):
    rows = b"".join(b"\0" + struct.pack(">6H", *[0, 900, 4095] * 2) for _ in range(2))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert load_image(png).getpixel((0, 0)) == (0, 3, 15)
    assert "16-bit pixels run from 0 to 3840 of 65535" in told(caplog)[0]


def test_postscript_is_not_run():
    with pytest.raises(MediaError, match="EPS is a program that draws, and is not run"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n")


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_further_frames_and_pages_are_named(tmp_path, form, caplog):
    path = tmp_path / f"a.{form.lower()}"
    lossless = {"lossless": True} if form == "WEBP" else {}
    halves().save(path, form, save_all=True, append_images=[Image.new("RGB", (6, 2), WHITE)], **lossless)
    assert load_image(path).getpixel((5, 1))[0] < 40  # the first, not the white one
    reason = "holds several frames or pages, and the first alone is read: give a film as a video"
    assert told(caplog) == ([] if form == "MPO" else [f"{path}: {reason}"])
    caplog.clear()
    halves().save(tmp_path / "one", form)
    load_image(tmp_path / "one")
    assert told(caplog) == []
