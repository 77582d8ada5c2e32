"""Image files to RGB pixels, with numpy and OpenCV only, as the checkpoint's own processor sees them.

The reference is `transformers.image_utils.load_image`: Pillow's decoding, the EXIF orientation applied, then
`convert("RGB")`, which drops an alpha channel. OpenCV decodes JPEG, PNG, WebP and BMP to the same bytes; CMYK JPEG
differs by at most 2 of 255, because OpenCV divides by 256 where Pillow divides by 255.

A small parser reads the header first. So an image that is too large is refused before anything is allocated, a
truncated one is refused (some OpenCV versions fill the rest with gray), and the orientation is ours to apply, because
OpenCV applies it for some formats and versions only. Lengths in the file are never trusted. Damaged metadata is
ignored; damaged pixels are not.
"""

import importlib
import re
import stat
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.errors import ImageError, RuntimeMissingError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 128_000_000  # 384 MB of RGB; the largest phone cameras make 200 MP files, but deliver 50 MP or fewer
_MAX_FILE_BYTES = 1 << 29  # an uncompressed image of MAX_PIXELS fits
_MAX_METADATA_BYTES = 1 << 20  # that orientations are looked for in
_SUPPORTED = "JPEG, PNG, WebP or BMP"
_OTHER_FORMATS = (
    (re.compile(rb"GIF8[79]a"), "a GIF"),
    (re.compile(rb"II\*\0|MM\0\*"), "a TIFF"),
    (re.compile(rb"....ftyp", re.DOTALL), "a HEIC, AVIF or video"),
    (re.compile(rb"%PDF"), "a PDF"),
)
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:="|>)([0-9])""")  # Pillow's own pattern (Image.getexif)


@dataclass(frozen=True)
class _Header:
    """What the file says about its pixels. `orientation` is EXIF's 1 to 8; `gray16` one channel of 16 bits."""

    width: int
    height: int
    orientation: int = 1
    gray16: bool = False


def read_image(path: str | PathLike[str]) -> Pixels:
    """Reads an image file.

    Args:
        path: A JPEG, PNG, WebP or BMP file.

    Returns:
        uint8 [height, width, 3], RGB, upright.

    Raises:
        ImageError: The file is missing, empty, not an image, truncated, damaged or of more than `MAX_PIXELS`.
        RuntimeMissingError: OpenCV is not installed.
    """
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{file}: expected an image file, found a folder; pass the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{file}: expected an image file, found something else; check the path")
        size_bytes = status.st_size
        if size_bytes > _MAX_FILE_BYTES:
            raise ImageError(
                f"{file}: expected at most {_MAX_FILE_BYTES} bytes, found {size_bytes}; save a smaller copy"
            )
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{file}: expected an image file, found no such file; check the path") from error
    except OSError as error:
        raise ImageError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    return decode_image(data, str(file))


def decode_image(data: bytes, name: str) -> Pixels:
    """Decodes the contents of an image file.

    Args:
        data: A whole JPEG, PNG, WebP or BMP file.
        name: What error messages call it.

    Returns:
        uint8 [height, width, 3], RGB, upright.

    Raises:
        ImageError: The data is empty, not an image, truncated, damaged or of more than `MAX_PIXELS`.
        RuntimeMissingError: OpenCV is not installed.
    """
    format_name, parse = _recognize(data, name)
    try:
        header = parse(data)
    except (ValueError, IndexError, struct.error) as error:
        raise ImageError(f"{name}: a truncated or damaged {format_name} file ({error}); replace the file") from error
    pixels = header.width * header.height
    if header.width <= 0 or header.height <= 0 or pixels > MAX_PIXELS:
        raise ImageError(
            f"{name}: expected 1 to {MAX_PIXELS / 1e6:.0f} megapixels, found {header.width}×{header.height}"
            f" ({pixels / 1e6:.1f} megapixels); save a smaller copy"
        )
    cv2 = _opencv()
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH if header.gray16 else cv2.IMREAD_COLOR
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"{name}: OpenCV cannot decode this {format_name} file ({error}); save it again") from error
    if decoded is None or decoded.shape[:2] != (header.height, header.width):
        found = "nothing that can be decoded" if decoded is None else f"{decoded.shape[1]}×{decoded.shape[0]}"
        raise ImageError(
            f"{name}: a damaged {format_name} file: its header says {header.width}×{header.height} pixels,"
            f" found {found}; replace the file"
        )
    if header.gray16:  # Pillow's I;16 to RGB clips; it does not scale
        rgb = cv2.cvtColor(np.minimum(decoded, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    else:
        rgb = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return _upright(cv2, rgb, header.orientation)


def _opencv() -> ModuleType:
    """OpenCV, imported when an image is decoded: an encoder that is given arrays does not need it."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise RuntimeMissingError(
            f"OpenCV decodes image files and cannot be imported ({error}): pip install opencv-python-headless"
        ) from error


def _recognize(data: bytes, name: str) -> tuple[str, Callable[[bytes], _Header]]:
    """The format's name and the parser of its header, by the first bytes; the file's suffix does not matter."""
    if not data:
        raise ImageError(f"{name}: expected an image, found an empty file; replace the file")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", _parse_jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", _parse_png
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", _parse_webp
    if data.startswith(b"BM"):
        return "BMP", _parse_bmp
    found = next((known for pattern, known in _OTHER_FORMATS if pattern.match(data)), f"{data[:8]!r}…")
    raise ImageError(f"{name}: expected a {_SUPPORTED} image, found {found} file; convert it or leave it out")


def _parse_jpeg(data: bytes) -> _Header:
    """ITU T.81, annex B: marker segments up to the first scan; an EOI marker must follow the scan."""
    at, size, exif, xmp = 2, None, b"", b""
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise ValueError("it ends before its pixels")
        marker = data[at + 1]
        at += 1
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # stuffing, padding, markers without a body
            continue
        if marker == 0xD9:
            raise ValueError("it has no pixels")
        (length,) = struct.unpack_from(">H", data, at + 1)
        body = data[at + 3 : at + 1 + length]
        if length < 2 or len(body) != length - 2:
            raise ValueError("it ends within its header")
        at += 1 + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            size = struct.unpack_from(">HH", body, 1)
        elif marker == 0xE1 and body.startswith(b"Exif\0"):
            exif += body[6:] if len(exif) < _MAX_METADATA_BYTES else b""
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body
        elif marker == 0xDA:
            break
    if size is None:
        raise ValueError("it has pixels before it says how many")
    # Within a scan 0xFF is followed by a stuffed 0 or a restart marker, so that this can only be the end of image.
    if data.find(b"\xff\xd9", at) < 0:
        raise ValueError("it ends within its pixels: no end-of-image marker")
    return _Header(size[1], size[0], _orientation(exif, xmp))


def _parse_png(data: bytes) -> _Header:
    """W3C PNG, chapter 11: chunks from IHDR to IEND."""
    if data[8:16] != b"\0\0\0\rIHDR":
        raise ValueError("it does not begin with an IHDR chunk")
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    at, kind, exif, xmp, left = 8, b"", b"", b"", _MAX_METADATA_BYTES
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise ValueError(f"it ends within its {kind!r} chunk")
        if kind == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and left > 0:
            key, _, text = data[at + 8 : at + 8 + min(length, left)].partition(b"\0")
            if key == b"Raw profile type exif" and not exif:
                text = _inflate(text[1:], left) if kind == b"zTXt" else text
                exif, left = _raw_profile(text), left - len(text)
            elif key == b"XML:com.adobe.xmp" and kind == b"iTXt":
                xmp = _inflate(text[2:].split(b"\0", 2)[-1], left) if text[:1] == b"\1" else text
                left -= len(xmp)
        at += 12 + length
    return _Header(width, height, _orientation(exif, xmp), gray16=(depth, color) == (16, 0))


def _parse_webp(data: bytes) -> _Header:
    """RFC 9649: the canvas of an extended file, or the size in the only frame of a simple one."""
    (riff_length,) = struct.unpack_from("<I", data, 4)
    if 8 + riff_length > len(data):
        raise ValueError(f"expected {8 + riff_length} bytes, found {len(data)}")
    first = data[12:16]
    if first == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        width, height = 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    elif first == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif first == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError(f"its first chunk {first!r} is not one of a WebP picture")
    at, exif, xmp = 12, b"", b""
    while at + 8 <= min(len(data), 8 + riff_length):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
        elif kind == b"XMP ":
            xmp = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return _Header(width, height, _orientation(exif, xmp))


def _parse_bmp(data: bytes) -> _Header:
    """BITMAPCOREHEADER or BITMAPINFOHEADER; a negative height means that the top row comes first."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return _Header(width, abs(height))


def _orientation(exif: bytes, xmp: bytes) -> int:
    """EXIF orientation 1 to 8 from a TIFF directory, else from XMP, else 1 (upright); metadata cannot fail an image."""
    exif = exif.removeprefix(b"Exif\0\0")
    found: int | None
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "<")
    try:
        at, found = struct.unpack_from(order + "I", exif, 4)[0], None
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112 and kind in (3, 4):  # SHORT, LONG
                (found,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)
    except struct.error:
        found = None
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _raw_profile(text: bytes) -> bytes:
    """EXIF as ImageMagick writes it into PNG text: a blank line, a name, a length, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _inflate(compressed: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, most)
    except zlib.error:
        return b""


def _upright(cv2: ModuleType, image: Pixels, orientation: int) -> Pixels:
    """Undoes the EXIF orientation of [height, width, 3], as PIL.ImageOps.exif_transpose does."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)  # cv2: 1 left-right, 0 up-down, -1 both
    return image if flip is None else cv2.flip(image, flip)
