# SPDX-License-Identifier: Apache-2.0
"""What encoding and decoding a clip returns: the clip as its code tells it, how good that is, how small the code is.

Clips of any length are coded piece by piece, so that beside the clips themselves one piece is held. A `Reconstruction`
knows no system, only its codec. `framecast.generate` makes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framecast.data.array_file import write_array
from framecast.data.files import new_folder
from framecast.data.image_file import write_image
from framecast.data.media import Row, grid, strip
from framecast.data.video_file import write_video
from framecast.forecast import free_folder
from framecast.metrics.forecast import eight_bit
from framecast.metrics.image import psnr
from framecast.system import Code, Codec
from framecast.video import Clip, from_video, to_video

_BLOCK = 16  # frames worked on at a time


@dataclass(frozen=True, repr=False, eq=False)
class Reconstruction:
    """A clip, its code, and what the code tells of it.

    Args:
        clip: that was encoded.
        codec: with which.
        codes: of its pieces, in order of time.
        video: the clip decoded, (T, C, H, W) in the clip's dtype and units.
        only: the same from some parts of the code alone, by the codec's names of them.
        record: model, device, seconds, versions.
    """

    clip: Clip
    codec: Codec
    codes: tuple[Code, ...]
    video: Tensor
    only: dict[str, Tensor]
    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"Reconstruction({len(self.clip)} frames in {len(self.codes)} pieces)"

    def __len__(self) -> int:
        return len(self.clip)

    def stored(self) -> Tensor:
        """The clip decoded from the code as a file would keep it."""
        kept = [self.codec.stored(code) for code in self.codes]
        if all(k is code for k, code in zip(kept, self.codes, strict=True)):
            return self.video
        return decoded(self.codec, kept, self.clip)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """How good the reconstruction is and how small the code.

        `psnr`: of the whole clip in 8-bit frames, in decibels, and `psnr_per_frame`; `psnr_stored`: of the stored code;
        `psnr_only`: of parts of the code. `pixel_values` and `code_values`: numbers in the clip and in its code, whose
        quotient is `ratio`; `code_bits`: of the stored code; `ratio_bits`: bits of the 8-bit frames by those;
        `percent_saved`: of the 8-bit frames' bits; `bits_per_frame`; `of_codes`: what else the codec tells of them, by
        name. A last piece that begins before the end of the one before counts in full.
        """
        per_frame, kept = self.psnr_per_frame(self.video), self.stored()
        values = sum(tensor[0].numel() for code in self.codes for tensor in code.values())
        bits, pixels = sum(self.codec.bits(code) for code in self.codes), self.clip.frames.numel()
        return {
            "psnr": of_clip(per_frame),
            "psnr_stored": of_clip(per_frame if kept is self.video else self.psnr_per_frame(kept)),
            "psnr_only": {view: of_clip(self.psnr_per_frame(made)) for view, made in self.only.items()},
            "pieces": len(self.codes),
            "pixel_values": pixels,
            "code_values": values,
            "ratio": pixels / values,
            "code_bits": bits,
            "ratio_bits": 8 * pixels / bits,
            "percent_saved": 100 * (1 - bits / (8 * pixels)),
            "bits_per_frame": bits / len(self),
            "of_codes": self.codec.figures(self.codes),
            "psnr_per_frame": [round(value, 4) for value in per_frame],
        }

    def psnr_per_frame(self, made: Tensor) -> list[float]:
        """PSNR in 8 bit of frames decoded from the clip's code."""
        pairs = zip(self._bytes(made), self._bytes(self.clip.frames), strict=True)
        return [value for a, b in pairs for value in psnr(a, b).tolist()]

    def save(self, folder: str | Path) -> list[Path]:
        """Write clip and reconstruction side by side as video and as strip, the frames and the figures, all or nothing.

        Args:
            folder: made if need be; must be empty.

        Returns:
            reconstructed.mp4, strip.png, reconstructed.npz and result.json, and only_<part>.npz for every part of the
            code that was decoded alone.

        Raises:
            ValueError: the folder holds files already; a free one is named.
        """
        folder = Path(folder)
        if (free := free_folder(folder)) != folder:
            raise ValueError(
                f"{folder} is not empty, and nothing in it is overwritten: choose another, {free} is free."
            )
        with new_folder(folder):
            return self._write(folder)

    def _write(self, folder: Path) -> list[Path]:
        comment = f"Encoded and decoded by framecast, model {self.record['model']} {self.record['sha256']}."
        clip, made = self._row("clip", self.clip.frames, made=False), self._row("reconstructed", self.video)
        parts = [self._row(f"{view} only", frames) for view, frames in self.only.items()]
        files = [folder / name for name in ("reconstructed.mp4", "strip.png", "result.json")]
        shown = _side_by_side([clip, made, *parts])
        write_video(files[0], shown, self.clip.fps, comment=comment, title="Reconstructed video")
        write_image(files[1], strip([clip, made, self._difference(), *parts]), comment=comment)
        files[2].write_text(json.dumps(self.record | self.figures, indent=2) + "\n", encoding="utf-8")
        arrays = {"reconstructed": self.video} | {f"only_{view}": frames for view, frames in self.only.items()}
        for name, frames in arrays.items():
            files.append(folder / f"{name}.npz")
            by = self.record | {"array": name}
            write_array(files[-1], frames, fps=self.clip.fps, value_range=self.clip.value_range, generated_by=by)
        return files

    def _row(self, label: str, frames: Tensor, *, made: bool = True) -> Row:
        clip = Clip(frames, fps=self.clip.fps, value_range=self.clip.value_range)
        return Row(label, clip, (False,) * len(frames) if made else None)

    def _difference(self) -> Row:
        """How far from the clip each pixel is, enlarged until one in 200 is white."""
        pairs = zip(self._bytes(self.video), self._bytes(self.clip.frames), strict=True)
        blocks = [(a.short() - b.short()).abs().amax(1, keepdim=True).to(torch.uint8) for a, b in pairs]
        counts = torch.stack([torch.bincount(block.flatten(), minlength=256) for block in blocks]).sum(0)
        bright = int((counts.cumsum(0) < 0.995 * counts.sum()).sum())  # 8-bit levels apart, which few pixels exceed
        factor = max(1, 255 // max(1, bright))
        shown = torch.cat([(block.short() * factor).clamp(max=255).to(torch.uint8) for block in blocks])
        return Row(f"difference x {factor}", Clip(shown, fps=self.clip.fps))

    def _bytes(self, frames: Tensor) -> Iterator[Tensor]:
        assert self.clip.value_range is not None
        for some in frames.split(_BLOCK):
            yield eight_bit(some, value_range=self.clip.value_range)


def starts(frames: int, length: int) -> list[int]:
    """First frames of the pieces of a clip; where the last is not full it begins earlier.

    Example:
        >>> starts(40, 16)
        [0, 16, 24]
    """
    return [min(k * length, frames - length) for k in range(math.ceil(frames / length))]


@torch.no_grad()
def encoded(
    codec: Codec, clip: Clip, *, device: torch.device, progress: Callable[[int, int], None] | None = None
) -> tuple[Code, ...]:
    """The codes of a clip's pieces.

    Args:
        codec: that encodes.
        clip: as long as a piece, or longer.
        device: of the codec's weights.
        progress: called with pieces done and in all.

    Raises:
        ValueError: a clip that is shorter than a piece.
    """
    length = codec.frames
    if len(clip) < length:
        had = f"{len(clip)} {'frame' if len(clip) == 1 else 'frames'}"
        raise ValueError(f"the clip has {had}, the model encodes {length} at once: give a longer clip.")
    codes: list[Code] = []
    places = starts(len(clip), length)
    for start in places:
        codes.append(codec.encode(to_video(clip[start : start + length]).to(device)))
        if progress is not None:
            progress(len(codes), len(places))
    return tuple(codes)


@torch.no_grad()
def decoded(codec: Codec, codes: Iterable[Code], like: Clip) -> Tensor:
    """The frames of a clip from the codes of its pieces, (T, C, H, W) in the dtype and units of the clip `like`."""
    out = torch.empty_like(like.frames, device="cpu")
    for k, (start, code) in enumerate(zip(starts(len(like), codec.frames), codes, strict=True)):
        fresh = k * codec.frames  # frames before it are those of the piece before
        out[fresh : start + codec.frames] = from_video(codec.decode(code)[0, fresh - start :], like)
    return out


def of_clip(per_frame: Sequence[float]) -> float:
    """PSNR over all frames of a clip, from that of each: of the mean squared error, not the mean of decibels.

    Example:
        >>> round(of_clip([20.0, 40.0]), 2)
        22.97
    """
    return -10 * math.log10(sum(10 ** (-value / 10) for value in per_frame) / len(per_frame))


def _side_by_side(rows: Sequence[Row]) -> Iterator[Tensor]:
    """The rows beside each other, some frames at a time."""
    for at in range(0, len(rows[0].clip), _BLOCK):
        part = slice(at, at + _BLOCK)
        yield grid([Row(row.label, row.clip[part], row.known[part] if row.known else None) for row in rows]).frames
