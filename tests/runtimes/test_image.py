"""Reading image files: the same pixels as Pillow behind `transformers`, and one clear refusal of everything else."""

import os
import re
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from tests.runtimes.pictures import (
    ORIENTATION,
    Pixels,
    awkward,
    chunk,
    cmyk_jpeg,
    encoded,
    oriented,
    png,
    smooth,
)
from vitedge.runtimes import image as image_module
from vitedge.runtimes.errors import ImageError, RuntimeMissingError, VitedgeError
from vitedge.runtimes.image import MAX_PIXELS, decode_image, read_image

AWKWARD = awkward()
PHOTO = Image.fromarray(smooth(61, 75))


def reference(path: Path) -> Pixels:
    """What the checkpoint's own processor would see. Opened here: `load_image` leaves animated files open."""
    with Image.open(path) as image:
        return np.asarray(load_image(image))


def read(data: bytes) -> Pixels:
    return decode_image(data, "picture")


def saved(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # Pillow's, about what it drops
@pytest.mark.parametrize("name", AWKWARD)
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name, AWKWARD[name])
    found = read_image(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, reference(path))
    np.testing.assert_array_equal(decode_image(AWKWARD[name], name), found)
    np.testing.assert_array_equal(read_image(str(path)), found)


def test_cmyk_jpeg_is_within_two_levels(tmp_path: Path) -> None:
    """OpenCV multiplies inks by k / 256 where Pillow multiplies by k / 255 and rounds: at most 1 + 1 of 255 apart."""
    path = saved(tmp_path, "cmyk.jpg", cmyk_jpeg())
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    difference = np.abs(read_image(path).astype(int) - reference(path))
    assert difference.max() <= 2
    assert np.abs(reference(path).astype(int) - smooth(61, 75)).mean() < 12  # and not the negative of the picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation: int) -> None:
    """Against a table of our own, so that Pillow and OpenCV cannot be wrong together."""
    stored = read(encoded(Image.fromarray(smooth(30, 47)), "JPEG"))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(read(oriented("JPEG", orientation)), upright)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("damage", ["", "short", "loop", "wrong type"])
def test_damaged_metadata_does_not_fail_an_image(order: str, damage: str) -> None:
    entry = struct.pack(order + "HHI", ORIENTATION, 2 if damage == "wrong type" else 3, 1)
    entry += struct.pack(order + "HH", 6, 0)
    entries = 65535 if damage == "loop" else 1
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, entries) + entry
    body = b"Exif\0\0" + (tiff[:14] if damage == "short" else tiff)
    data = encoded(Image.fromarray(smooth(30, 47)), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    assert read(data).shape == ((30, 47, 3) if damage else (47, 30, 3))


def test_exif_in_png_text_is_found() -> None:
    """ImageMagick writes EXIF into PNG as hexadecimal text, plain or compressed."""
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    text = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
    key = b"Raw profile type exif\0"
    rows = smooth(30, 47).tobytes()
    for extra in (chunk(b"tEXt", key + text), chunk(b"zTXt", key + b"\0" + zlib.compress(text))):
        np.testing.assert_array_equal(read(png(47, 30, 8, 2, rows, extra)), np.rot90(smooth(30, 47)))


def test_compressed_metadata_is_not_inflated_without_limit() -> None:
    bomb = zlib.compress(b"0" * 200_000_000, 1)
    data = png(47, 30, 8, 2, smooth(30, 47).tobytes(), chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb))
    tracemalloc.start()
    try:
        assert read(data).shape == (30, 47, 3)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20_000_000


REFUSED = {
    "empty": (b"", r"empty file; replace the file"),
    "text": (b"not an image at all\n", r"expected a JPEG, PNG, WebP or BMP image.*convert it or leave it out"),
    "one byte": (b"\xff", r"expected a JPEG, PNG, WebP or BMP image.*convert it or leave it out"),
    "gif": (encoded(PHOTO, "GIF"), r"found a GIF file; convert it"),
    "tiff": (encoded(PHOTO, "TIFF"), r"found a TIFF file; convert it"),
    "pdf": (b"%PDF-1.7\n", r"found a PDF file; convert it"),
    "heic": (b"\0\0\0\x18ftypheic", r"found a HEIC, AVIF or video file; convert it"),
    "bmp that is text": (b"BM is how this begins", r"BMP"),
    "jpeg cut in its pixels": (AWKWARD["baseline.jpg"][:-300], r"truncated.*JPEG.*end-of-image.*replace the file"),
    "jpeg without its last byte": (AWKWARD["baseline.jpg"][:-1], r"truncated.*JPEG.*replace the file"),
    "jpeg cut in its header": (AWKWARD["baseline.jpg"][:200], r"truncated.*JPEG.*within its header.*replace the file"),
    "jpeg of a signature": (b"\xff\xd8\xff", r"truncated.*JPEG.*replace the file"),
    "jpeg without a frame": (b"\xff\xd8\xff\xda\0\x02\xff\xd9", r"JPEG.*before it says how many.*replace the file"),
    "jpeg without a scan": (b"\xff\xd8\xff\xd9", r"JPEG.*no pixels.*replace the file"),
    "progressive jpeg cut": (AWKWARD["progressive.jpg"][:-300], r"truncated.*JPEG.*replace the file"),
    "png cut": (AWKWARD["rgb.png"][:-300], r"truncated.*PNG.*within its b'IDAT' chunk.*replace the file"),
    "png without its end": (AWKWARD["rgb.png"][:-12], r"truncated.*PNG.*replace the file"),
    "png of a signature": (AWKWARD["rgb.png"][:8], r"truncated.*PNG.*IHDR.*replace the file"),
    "webp cut": (AWKWARD["lossy.webp"][:-100], r"truncated.*WebP.*expected \d+ bytes, found \d+.*replace the file"),
    "webp of a sound": (b"RIFF\x10\0\0\0WEBPwave" + bytes(16), r"WebP.*b'wave'.*replace the file"),
    "webp of a signature": (b"RIFF\x04\0\0\0WEBP", r"WebP.*replace the file"),
    "bmp cut": (AWKWARD["rgb.bmp"][:-100], r"damaged BMP.*75×61.*replace the file"),
    "bmp cut in its header": (AWKWARD["rgb.bmp"][:20], r"truncated.*BMP.*replace the file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path) -> None:
    data, message = REFUSED[case]
    path = saved(tmp_path, "broken.jpg", data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def damaged_pngs() -> dict[str, bytes]:
    """Whole in their chunks, broken in their pixels."""
    rows = smooth(61, 75)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    whole = png(75, 61, 8, 2, rows.tobytes())
    head, end = whole[:33], chunk(b"IEND", b"")
    body = zlib.compress(lines)
    return {
        "no pixels": head + end,
        "half of the stream": head + chunk(b"IDAT", body[: len(body) // 2]) + end,
        "half of the rows": head + chunk(b"IDAT", zlib.compress(lines[: len(lines) // 2])) + end,
        "zeros in the stream": head + chunk(b"IDAT", body[:400] + bytes(100) + body[500:]) + end,
        "unknown filter": head + chunk(b"IDAT", zlib.compress(b"\x09" + lines[1:])) + end,
        "impossible bit depth": whole[:24] + b"\x05" + whole[25:],
    }


@pytest.mark.parametrize("case", damaged_pngs())
def test_refuses_damaged_pixels(case: str, tmp_path: Path) -> None:
    """Not half a picture with gray below: a measurement on such an image would say nothing."""
    path = saved(tmp_path, "broken.png", damaged_pngs()[case])
    with pytest.raises(ImageError, match=rf"^{re.escape(str(path))}: a damaged PNG.*replace the file$"):
        read_image(path)


def too_large() -> dict[str, bytes]:
    """Small files of 200 megapixels; the PNG is a valid one, the others are as far as a header goes."""
    jpeg = AWKWARD["baseline.jpg"]
    frame = jpeg.index(b"\xff\xc0") + 5
    webp = AWKWARD["extended.webp"]
    bmp = AWKWARD["rgb.bmp"]
    return {
        "png": png(20000, 10000, 1, 0, bytes(2500 * 10000)),
        "jpeg": jpeg[:frame] + struct.pack(">HH", 10000, 20000) + jpeg[frame + 4 :],
        "webp": webp[:24] + (19999).to_bytes(3, "little") + (9999).to_bytes(3, "little") + webp[30:],
        "bmp": bmp[:18] + struct.pack("<ii", 20000, 10000) + bmp[26:],
        "top-down bmp": bmp[:18] + struct.pack("<ii", 20000, -10000) + bmp[26:],
    }


@pytest.mark.parametrize("case", too_large())
def test_refuses_200_megapixels_before_decoding(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    path = saved(tmp_path, "bomb", too_large()[case])
    assert path.stat().st_size < 600_000
    with pytest.raises(ImageError, match=r"expected 1 to 128 megapixels, found 20000×10000 \(200\.0 meg") as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("save a smaller copy")


def test_the_limit_itself_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the refusal: one pixel less is fine."""
    monkeypatch.setattr(image_module, "MAX_PIXELS", 75 * 61)
    assert read(AWKWARD["rgb.png"]).shape == (61, 75, 3)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 75 * 61 - 1)
    with pytest.raises(ImageError, match="75×61"):
        read(AWKWARD["rgb.png"])
    assert MAX_PIXELS == 128_000_000


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_refuses_an_image_without_pixels(size: tuple[int, int]) -> None:
    whole = AWKWARD["rgb.png"]
    with pytest.raises(ImageError, match=f"picture: expected 1 to 128 megapixels, found {size[0]}×{size[1]}"):
        read(whole[:16] + struct.pack(">II", *size) + whole[24:])


def test_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jpg"
    with pytest.raises(ImageError, match=rf"^{re.escape(str(missing))}: .*no such file; check the path$"):
        read_image(missing)
    with pytest.raises(ImageError, match=rf"^{re.escape(str(tmp_path))}: .*found a folder; pass the files in it$"):
        read_image(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # reading one would wait for ever
    with pytest.raises(ImageError, match=rf"^{re.escape(str(pipe))}: .*something else; check the path$"):
        read_image(pipe)


def test_refuses_a_file_too_large_to_load(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    with path.open("wb") as file:
        file.truncate((1 << 29) + 1)  # sparse: takes no room
    with pytest.raises(ImageError, match=r"film\.jpg: expected at most 536870912 bytes, found 536870913; save a sm"):
        read_image(path)


def test_refuses_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "private.jpg", AWKWARD["baseline.jpg"])

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)  # tests may run as root, whom no permission stops
    with pytest.raises(ImageError, match=r"private\.jpg: cannot be read \(Permission denied\); check its permissions"):
        read_image(path)


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeMissingError, match=r"OpenCV.*: pip install opencv-python-headless"):
        read(AWKWARD["rgb.png"])
    with pytest.raises(ImageError, match="GIF"):  # what needs no decoder still says what is wrong
        read(REFUSED["gif"][0])


def holds_the_contract(data: bytes) -> None:
    """Pixels of the right type, or an error of ours that names the file; nothing else escapes."""
    try:
        pixels = decode_image(data, "fuzzed.bin")
    except ImageError as error:
        assert isinstance(error, VitedgeError)
        assert str(error).startswith("fuzzed.bin: ")
        assert "; " in str(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= image_module.MAX_PIXELS


@pytest.fixture(scope="module")
def small_limit() -> Any:
    """Damaged headers may promise 100 megapixels of gray; a lower limit keeps thousands of examples quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_module, "MAX_PIXELS", 1_000_000)
        yield


SIGNATURES = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\1\0\0WEBPVP8 ", b"RIFF\0\1\0\0WEBPVP8X", b"BM"]


@pytest.mark.usefixtures("small_limit")
@settings(max_examples=600, deadline=None)
@given(signature=st.sampled_from(SIGNATURES), rest=st.binary(max_size=400))
def test_any_bytes(signature: bytes, rest: bytes) -> None:
    holds_the_contract(signature + rest)


FUZZED = [name for name in AWKWARD if len(AWKWARD[name]) < 20_000]


@pytest.mark.usefixtures("small_limit")
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_damaged_headers(data: st.DataObject) -> None:
    """Valid files of every kind with bytes of their first kilobyte changed, a piece removed, or the end cut off."""
    content = bytearray(AWKWARD[data.draw(st.sampled_from(FUZZED))])
    places = st.integers(0, min(len(content), 1000) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        content[place] = value
    start, length = data.draw(st.tuples(places, st.integers(0, 4)))
    del content[start : start + length]
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    holds_the_contract(bytes(content))


def test_metadata_is_inflated_up_to_one_limit_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand chunks of a kilobyte each are a gigabyte inflated."""
    inflated = []
    inflate = image_module._inflate
    monkeypatch.setattr(
        image_module, "_inflate", lambda data, most: inflated.append(inflate(data, most)) or inflated[-1]
    )
    bombs = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"x" * (1 << 19))) * 100
    decode_image(png(47, 30, 8, 2, smooth(30, 47).tobytes(), bombs), "bombs.png")
    assert sum(map(len, inflated)) == 1 << 20
