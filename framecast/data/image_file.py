# SPDX-License-Identifier: Apache-2.0
"""Pictures and animations made of them, in and out, and drawn letters; the only file that knows the image library.

Reads folders of numbered images, single images, TIFF stacks and animated WebP (GIF goes through the video decoder).
Writes PNG, animated WebP and GIF. The animations are assembled here frame by frame, because the own writers of the
library merge identical neighbours, which would shorten a video.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from framecast.data.files import BadClip, new_file, view_rate

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp"})
ANIMATED = frozenset({".webp"})
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # the library's names of grey pixel formats
_PRODUCER = "framecast"


@dataclass(frozen=True)
class ImageFile:
    """Images of one size, one after the other, or the pictures of one animated file."""

    path: Path
    frames: int
    fps: float | None  # None: images do not say
    channels: int  # 1 where all images are grey, else 3; alpha is dropped
    height: int  # pixels
    width: int
    times: np.ndarray | None  # (frames,) seconds from the first frame
    images: tuple[Path, ...] = ()  # of a folder, in order; empty: `path` is the animation itself
    value_range: None = None

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` as (n, C, H, W) uint8, in any order, repeats allowed.

        Raises:
            BadClip: a frame that is not there, or that cannot be decoded.
        """
        for i in indices:
            if not 0 <= i < self.frames:
                raise BadClip(f"{self.path}: frame {i} asked for, there are frames 0 to {self.frames - 1}.")
        wanted = sorted(set(int(i) for i in indices))
        found = dict(zip(wanted, self._pictures(wanted)))
        out = torch.empty((len(indices), self.channels, self.height, self.width), dtype=torch.uint8)
        for place, i in enumerate(indices):
            out[place] = torch.from_numpy(found[int(i)]).permute(2, 0, 1)
        return out

    def _pictures(self, wanted: list[int]) -> Iterator[np.ndarray]:
        if self.images:
            for i in wanted:
                with _opened(self.images[i]) as image:
                    yield _pixels(image, self, self.images[i])
            return
        with _opened(self.path) as image:
            for i in wanted:
                try:
                    image.seek(i)
                except (EOFError, OSError) as error:
                    raise BadClip(f"{self.path}: decoder stopped at frame {i} ({error}).") from None
                yield _pixels(image, self, self.path, f" at frame {i}")


def numbered_images(folder: Path) -> list[Path]:
    """Images that lie directly in a folder and have a number in their names, 2 before 10."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and re.search(r"\d", p.stem) and p.is_file()]
    return sorted(found, key=_natural)


def open_images(path: Path | str) -> ImageFile:
    """Open a folder of numbered images, a single image or an animated WebP by their headers.

    Raises:
        BadClip: no images, images of several sizes, or a file that is not an image.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise BadClip(f"{path}: there is no such file.")
    if not path.stat().st_size:
        raise BadClip(f"{path}: the file is empty.")
    with _opened(path) as image:
        width, height = image.size
        channels, pages = 1 if image.mode in _GREY else 3, getattr(image, "n_frames", 1)
    seconds = _webp_durations(path) if path.suffix.lower() in ANIMATED else []
    if len(seconds) < 2:  # a single image, or a stack of pages, which says nothing about time
        return ImageFile(path, pages, None, channels, height, width, None)
    times = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
    fps = (len(times) - 1) / float(times[-1]) if times[-1] > 0 else None
    return ImageFile(path, len(times), fps, channels, height, width, times if fps else None)


def write_image(
    path: Path | str, pixels: Tensor | np.ndarray, *, comment: str, title: str = "", overwrite: bool = False
) -> Path:
    """Write a PNG without loss.

    Args:
        path: ends in .png.
        pixels: (C, H, W) uint8 with 1 or 3 channels.
        comment: kept in the file: what it shows, that it is generated, by which model.
        title: kept in the file, too, where given.
        overwrite: replace a file that is there already.
    """
    path = Path(path)
    _want_suffix(path, ".png")
    about = PngImagePlugin.PngInfo()
    for key, value in (("Title", title), ("Comment", comment), ("Software", _PRODUCER)):
        if value:
            about.add_itxt(key, value) if not value.isascii() else about.add_text(key, value)
    with new_file(path, overwrite=overwrite) as temporary:
        _image(np.asarray(pixels)).save(temporary, format="PNG", pnginfo=about)
    return path


def write_animation(
    path: Path | str, frames: Tensor, fps: float | None, *, comment: str, overwrite: bool = False
) -> Path:
    """Write an endless animation for people to look at: WebP (small) or GIF (256 colours), by the suffix.

    Every frame is kept, identical neighbours too, and the durations add up to the true length of the video as nearly
    as the format's unit (1 ms, 10 ms) allows; GIF viewers slow down above 50 frames per second, so it stops there.

    Args:
        path: ends in .webp or .gif.
        frames: (T, C, H, W) uint8 with 1 or 3 channels.
        fps: frames per second; None where the source has no time; see `view_rate`.
        comment: kept in the file: that it is generated, and by which model.
        overwrite: replace a file that is there already.
    """
    path = Path(path)
    _want_suffix(path, ".webp", ".gif")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or not len(frames):
        raise ValueError(f"an animation is written from uint8 frames (T, C, H, W), got {tuple(frames.shape)}.")
    pictures = [_image(frame) for frame in frames.cpu().numpy()]
    rate = view_rate(fps)
    with new_file(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() == ".webp":
            temporary.write_bytes(_webp(pictures, _durations(len(pictures), rate, unit=0.001, least=1), comment))
        else:
            temporary.write_bytes(_gif(pictures, _durations(len(pictures), rate, unit=0.01, least=2), comment))
    return path


def glyph(text: str, size: int) -> np.ndarray:
    """Text in the built-in font, cropped to its ink.

    Args:
        text: letters or digits.
        size: height of the font in pixels; the ink of a digit is about 0.7 of it.

    Returns:
        (H, W) uint8, 255 where the ink is full.
    """
    pixels = text_line(text, size)
    ink = np.argwhere(pixels)
    if not len(ink):
        raise ValueError(f"{text!r} leaves no ink in the built-in font.")
    (top, left), (bottom, right) = ink.min(0), ink.max(0) + 1
    return pixels[top:bottom, left:right]


def text_line(text: str, size: int) -> np.ndarray:
    """Text in the built-in font on a line of constant height, (H, W) uint8, 255 where the ink is full."""
    font = ImageFont.load_default(size)
    width = max(1, round(font.getlength(text)))
    image = Image.new("L", (width, round(1.3 * size)))
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=font)
    return np.asarray(image)


def _open_folder(folder: Path) -> ImageFile:
    images = numbered_images(folder)
    if not images:
        raise BadClip(f"{folder}: the folder holds no numbered images ({', '.join(sorted(SUFFIXES))}).")
    size, grey = None, True
    for path in images:
        with _opened(path) as image:
            if size is not None and image.size != size:
                raise BadClip(
                    f"{folder}: {path.name} is {image.width}x{image.height}, {images[0].name} is {size[0]}x{size[1]}; "
                    "the frames of a clip need one size."
                )
            size, grey = image.size, grey and image.mode in _GREY
    assert size is not None
    return ImageFile(folder, len(images), None, 1 if grey else 3, size[1], size[0], None, tuple(images))


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorting key by which frame2 comes before frame10."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"(\d+)", path.name.lower())]


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "the file is empty" if not path.stat().st_size else "not an image that can be read"
        raise BadClip(f"{path}: {why} ({type(error).__name__}).") from None


def _pixels(image: Image.Image, file: ImageFile, path: Path, where: str = "") -> np.ndarray:
    """(H, W, C) uint8; palettes resolved, alpha dropped, 16-bit grey in 8 bit."""
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadClip(f"{path}: decoder stopped{where} ({error}).") from None
    if image.size != (file.width, file.height):
        raise BadClip(f"{path}: its size changed since it was opened.")
    if image.mode == "F":
        raise BadClip(f"{path}: holds floating-point values; store them as .npy and declare their range.")
    if image.mode.startswith("I"):  # 16 bit: the high byte
        pixels = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(pixels[..., None], file.channels, axis=2)
    if image.mode in ("LA", "RGBA", "PA", "P", "1"):
        image = image.convert("RGBA" if image.mode in ("PA", "P") else image.mode)
    converted = np.array(image.convert("L" if file.channels == 1 else "RGB"))
    return converted.reshape(file.height, file.width, file.channels)


def _image(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"a picture is (1 or 3, H, W) uint8, got {pixels.dtype} {pixels.shape}.")
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _want_suffix(path: Path, *suffixes: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: written as {' or '.join(suffixes)}; name the file so.")


def _durations(count: int, fps: float, *, unit: float, least: int) -> list[int]:
    """Whole units of time per frame; rounding the moments, not the durations, keeps the rate."""
    moments = [round(k / (fps * unit)) for k in range(count + 1)]
    return [max(least, after - before) for before, after in itertools.pairwise(moments)]


def _gif(pictures: list[Image.Image], durations: list[int], comment: str) -> bytes:
    """A GIF with one palette per frame (fast octree, no dithering: ten times faster than the default, no larger)."""
    drawn = [p.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for p in pictures]
    head, _ = GifImagePlugin.getheader(drawn[0].copy(), None, {"loop": 0, "comment": comment, "duration": 10})
    blocks = list(head)
    for picture, duration in zip(drawn, durations):
        blocks += GifImagePlugin.getdata(picture, duration=10 * duration, include_color_table=True)
    return b"".join([*blocks, b";"])


def _webp(pictures: list[Image.Image], durations: list[int], comment: str) -> bytes:
    """An animated WebP: every picture compressed by itself, in the container's chunks (RFC 9649, section 2.7)."""
    width, height = pictures[0].size

    def u24(value: int) -> bytes:
        return value.to_bytes(3, "little")

    exif = Image.Exif()
    exif[0x010E], exif[0x0131] = comment, _PRODUCER  # ImageDescription, Software
    animation, described = 0b0000_0010, 0b0000_1100  # flags: animation; Exif and XMP
    chunks = [
        (b"VP8X", bytes([animation | described, 0, 0, 0]) + u24(width - 1) + u24(height - 1)),
        (b"ANIM", struct.pack("<IH", 0xFF000000, 0)),  # black background, endless
    ]
    for picture, duration in zip(pictures, durations):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, format="WEBP", quality=90, method=4)
        bitstream = b"".join(_chunk(n, d) for n, d in _riff_chunks(buffer.getvalue()) if n in (b"VP8 ", b"VP8L"))
        no_blend = b"\x02"
        chunks.append((b"ANMF", u24(0) * 2 + u24(width - 1) + u24(height - 1) + u24(duration) + no_blend + bitstream))
    chunks += [(b"EXIF", exif.tobytes()), (b"XMP ", _xmp(comment))]
    body = b"WEBP" + b"".join(_chunk(name, data) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _xmp(comment: str) -> bytes:
    """The comment as Dublin Core description."""
    text = comment.replace("&", "&amp;").replace("<", "&lt;")
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{text}</rdf:li>'
        "</rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _webp_durations(path: Path) -> list[float]:
    """Seconds that each picture of an animated WebP is shown, from its chunk headers."""
    return [int.from_bytes(d[12:15], "little") / 1000 for n, d in _riff_chunks(path.read_bytes()) if n == b"ANMF"]
