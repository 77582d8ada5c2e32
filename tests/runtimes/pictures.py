"""Image files that are awkward to read, made in code: every color type, bit depth, orientation and odd size."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112  # the EXIF tag


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth random content, uint8 [height, width, 3]: compressible, and asymmetric, so that a wrong flip shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image: Pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of unfiltered `rows` (without filter bytes), in combinations that Pillow does not write."""
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def oriented(file_format: str, orientation: int, **options: Any) -> bytes:
    """A file whose pixels are to be turned as EXIF says."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(Image.fromarray(smooth(30, 47)), file_format, exif=exif, **options)


def awkward() -> Mapping[str, bytes]:
    """Files by name; the suffix is the format's."""
    color = smooth(61, 75)
    alpha = smooth(61, 75, seed=5)[..., 0]
    image = Image.fromarray(color)
    gray = image.convert("L")
    palette = image.quantize(31)
    wide = (smooth(61, 75).astype(np.uint16) * 257) ^ 0x0055  # low bytes that differ from the high ones
    wide_gray = wide[..., 0]
    wide_la = np.stack([wide_gray, wide[..., 1]], axis=-1).astype(">u2").tobytes()
    dark_gray = (np.arange(61 * 75) % 512).astype(np.uint16).reshape(61, 75)  # 16 bits, mostly used: Pillow clips
    return {
        "gray.png": encoded(gray, "PNG"),
        "gray.jpg": encoded(gray, "JPEG"),
        "gray.bmp": encoded(gray, "BMP"),
        "gray-alpha.png": encoded(Image.merge("LA", [gray, Image.fromarray(alpha)]), "PNG"),
        "gray-key.png": encoded(gray, "PNG", transparency=100),
        "gray-2-bit.png": png(76, 61, 2, 0, np.arange(61 * 19).astype(np.uint8).tobytes()),
        "gray-4-bit.png": png(76, 61, 4, 0, np.arange(61 * 38).astype(np.uint8).tobytes()),
        "rgb.png": encoded(image, "PNG"),
        "rgb-key.png": encoded(image, "PNG", transparency=(1, 2, 3)),
        "rgba.png": encoded(Image.fromarray(np.dstack([color, alpha])), "PNG"),
        "rgba.webp": encoded(Image.fromarray(np.dstack([color, alpha])), "WEBP", lossless=True, exact=True),
        "rgba.bmp": encoded(Image.fromarray(np.dstack([color, alpha])), "BMP"),
        "palette.png": encoded(palette, "PNG"),
        "palette-transparent.png": encoded(palette, "PNG", transparency=3),
        "palette-translucent.png": encoded(palette, "PNG", transparency=bytes(range(0, 248, 8))),
        "palette.bmp": encoded(palette, "BMP"),
        "1-bit.png": encoded(image.convert("1"), "PNG"),
        "1-bit.bmp": encoded(image.convert("1"), "BMP"),
        "gray-16-bit.png": encoded(Image.fromarray(wide_gray), "PNG"),
        "gray-16-bit-dark.png": encoded(Image.fromarray(dark_gray), "PNG"),
        "gray-alpha-16-bit.png": png(75, 61, 16, 4, wide_la),
        "rgb-16-bit.png": cv2.imencode(".png", wide)[1].tobytes(),
        "rgba-16-bit.png": cv2.imencode(".png", np.dstack([wide, wide_gray]))[1].tobytes(),
        "baseline.jpg": encoded(image, "JPEG"),
        "full-chroma.jpg": encoded(image, "JPEG", subsampling=0, quality=95),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "restart-markers.jpg": encoded(image, "JPEG", restart_marker_blocks=3),
        "comment.jpg": encoded(image, "JPEG", comment=b"\xff\xd9 \xff\xda not markers"),
        "rgb-not-ycc.jpg": encoded(image, "JPEG", keep_rgb=True),
        "thumbnail.jpg": _with_thumbnail(image),
        "trailing.jpg": encoded(image, "JPEG") + b"appended by an editor",
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "extended.webp": encoded(image, "WEBP", icc_profile=b"profile"),
        "animated.webp": encoded(
            image, "WEBP", save_all=True, append_images=[Image.fromarray(color[::-1].copy())], lossless=True
        ),
        "animated.png": encoded(image, "PNG", save_all=True, append_images=[Image.fromarray(color[::-1].copy())]),
        "rgb.bmp": encoded(image, "BMP"),
        "top-down.bmp": _top_down(encoded(image, "BMP")),
        "1x1.png": encoded(Image.new("RGB", (1, 1), (9, 130, 250)), "PNG"),
        "1x1.jpg": encoded(Image.new("RGB", (1, 1), (9, 130, 250)), "JPEG"),
        "1x1.webp": encoded(Image.new("RGB", (1, 1), (9, 130, 250)), "WEBP"),
        "1x1.bmp": encoded(Image.new("RGB", (1, 1), (9, 130, 250)), "BMP"),
        "8000x100.jpg": encoded(Image.fromarray(smooth(100, 8000)), "JPEG"),
        "8000x100.png": encoded(Image.fromarray(smooth(100, 8000)), "PNG"),
        "100x8000.webp": encoded(Image.fromarray(smooth(8000, 100)), "WEBP", method=0),
        "wrong-suffix.png": encoded(image, "JPEG"),
        **{f"orientation-{n}.jpg": oriented("JPEG", n) for n in range(1, 9)},
        **{f"orientation-{n}.png": oriented("PNG", n) for n in (3, 6)},
        **{f"orientation-{n}.webp": oriented("WEBP", n) for n in (5, 8)},
        "orientation-0.jpg": oriented("JPEG", 0),  # not one of EXIF's: upright
        "orientation-9.jpg": oriented("JPEG", 9),
        "orientation-xmp.jpg": encoded(
            Image.fromarray(smooth(30, 47)), "JPEG", xmp=b'<x:xmpmeta><rdf:li tiff:Orientation="6"/></x:xmpmeta>'
        ),
    }


def cmyk_jpeg() -> bytes:
    """What print shops deliver; Pillow writes Adobe's marker, and the inks inverted as Photoshop does."""
    return encoded(Image.fromarray(smooth(61, 75)).convert("CMYK"), "JPEG", quality=95)


def _with_thumbnail(image: Image.Image) -> bytes:
    """A JPEG within the EXIF of a JPEG: its markers are not the picture's."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body: bytes = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0") + encoded(image.resize((20, 16)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = encoded(image, "JPEG")
    return data[:2] + segment + data[2:]


def _top_down(data: bytes) -> bytes:
    """A BMP with its height negated: the rows then begin at the top."""
    (height,) = struct.unpack_from("<i", data, 22)
    return data[:22] + struct.pack("<i", -height) + data[26:]
