# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: film strips, clips side by side, coloured edges that tell given frames from made ones.

Everything here is for looking at, in 8 bit and enlarged by whole factors without smoothing; nothing here is measured.
Green edge: a given frame. Red edge: a made one (the colours of the figures in SVG's paper, Denton and Fergus 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from framecast.data import image_file, video_file
from framecast.video import Clip

_GIVEN = (30, 160, 60)
_MADE = (210, 45, 45)
_PAPER, _INK = 255, 40
_SIDE = 128  # pixels; smaller videos are enlarged until their short side has so many
_FONT = 14  # pixels
_GAP = 4  # pixels between cells
_BLOCK = 16  # frames of a long clip shown at a time
# dark blue, light blue, white, light red, dark red, evenly spaced from the lowest value to the highest
_DIVERGING = np.array([[20, 50, 120], [110, 165, 215], [248, 248, 248], [230, 140, 110], [130, 15, 35]], np.float32)


@dataclass(frozen=True)
class Row:
    """One video of a picture: its label, its frames from frame 0 on, and which of them were given."""

    label: str
    clip: Clip
    known: Sequence[bool] | None = None  # True: given; None: no edges (a true video)


def viewable(clip: Clip) -> Tensor:
    """Frames as a screen shows them, (T, 1 or 3, H, W) uint8.

    Float values are scaled by their range. A field with a range about zero (-a to a) goes through a map from blue over
    white (zero) to red, other single channels are grey. Of a clip with neither 1 nor 3 channels the first is shown.
    """
    frames = clip.frames if clip.frames.shape[1] in (1, 3) else clip.frames[:, :1]
    if frames.dtype == torch.uint8:
        return frames
    assert clip.value_range is not None
    low, high = clip.value_range
    share = ((frames - low) / (high - low)).clamp(0, 1)
    if frames.shape[1] == 3 or low != -high:
        return (255 * share).round().to(torch.uint8)
    places = np.linspace(0, 1, len(_DIVERGING))
    value = share[:, 0].numpy()
    colours = np.stack([np.interp(value, places, _DIVERGING[:, c]) for c in range(3)], axis=1)
    return torch.from_numpy(colours.round().astype(np.uint8))


def framed(clip: Clip, known: Sequence[bool] | None = None, *, plain: bool = False) -> Clip:
    """The clip ready to be shown: RGB uint8, enlarged, each frame with its edge outside of the picture.

    Args:
        clip: any clip.
        known: for every frame, True where it was given; None: no edges.
        plain: leave the edges out.
    """
    frames = viewable(clip).expand(-1, 3, -1, -1)
    factor = max(1, -(-_SIDE // min(frames.shape[-2:])))
    frames = frames.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    if known is None or plain:
        return Clip(frames, clip.fps)
    if len(known) != len(frames):
        raise ValueError(f"{len(known)} frames are said to be given or made, the clip has {len(frames)}.")
    return Clip(_edged(frames, known), clip.fps)


def strip(
    rows: Sequence[Row], *, frames: Sequence[int] | None = None, columns: int = 12, plain: bool = False
) -> Tensor:
    """A film strip: one row per video, one column per frame, frame indices on top, labels on the left.

    Args:
        rows: for example context, truth, sample 0, sample 1.
        frames: indices of the frames to show; None: `columns` of them, spread from the first to the last, the last
            given frame and the first made one among them.
        columns: most frames shown when `frames` is None.
        plain: leave the coloured edges out.

    Returns:
        (3, H, W) uint8.
    """
    _check(rows)
    total = max(len(row.clip) for row in rows)
    if frames is None:
        frames = _columns(rows, total, min(columns, total))
    cells = [_chosen(row, frames, plain=plain) for row in rows]
    height, width = next(picture.shape[-2:] for row in cells for picture in row.values())
    left = max(_text(row.label).shape[1] for row in rows) + 2 * _GAP
    top = _text("0").shape[0] + _GAP
    sheet = _sheet(top + len(rows) * (height + _GAP), left + len(frames) * (width + _GAP))
    for column, index in enumerate(frames):
        x = left + column * (width + _GAP)
        _write(sheet, str(index), y=0, x=x)
        for line, pictures in enumerate(cells):
            if index in pictures:
                y = top + line * (height + _GAP)
                sheet[:, y : y + height, x : x + width] = pictures[index]
    for line, row in enumerate(rows):
        _write(sheet, row.label, y=top + line * (height + _GAP) + height // 2 - _FONT // 2, x=_GAP)
    return sheet


def _columns(rows: Sequence[Row], total: int, columns: int) -> list[int]:
    """Evenly spread frames, and the place where frames cease to be given."""
    known = next((list(row.known) for row in rows if row.known is not None and any(row.known)), [])
    border = [i for i in range(len(known) - 1) if known[i] and not known[i + 1]][:1]
    wanted = {*border, *(i + 1 for i in border)} if columns > 3 else set()
    for spread in range(columns, 1, -1):
        chosen = wanted | {round(i) for i in np.linspace(0, total - 1, spread)}
        if len(chosen) <= columns:
            return sorted(chosen)
    return [0]


def grid(rows: Sequence[Row], *, columns: int = 5, plain: bool = False) -> Clip:
    """Several videos side by side in one, each under its label; those that end early leave their place empty.

    Args:
        rows: for example context, truth, sample 0, sample 1; the first with a rate gives the rate.
        columns: videos beside each other before a new line begins.
        plain: leave the coloured edges out.
    """
    _check(rows)
    cells = [_cells(row, plain=plain) for row in rows]
    height, width = cells[0].shape[-2:]
    width = max(width, *(_text(row.label).shape[1] for row in rows))
    top, columns = _text("0").shape[0], min(columns, len(rows))
    tall, wide = top + height + _GAP, width + _GAP
    board = _sheet(-(-len(rows) // columns) * tall + _GAP, columns * wide + _GAP)
    for i, row in enumerate(rows):
        _write(board, row.label, y=i // columns * tall, x=_GAP + i % columns * wide)
    frames = board.expand(max(len(c) for c in cells), -1, -1, -1).clone()
    for i, cell in enumerate(cells):
        y, x = i // columns * tall + top, _GAP + i % columns * wide
        frames[: len(cell), :, y : y + height, x : x + cell.shape[-1]] = cell
    return Clip(frames, next((row.clip.fps for row in rows if row.clip.fps is not None), None))


def save_view(path: Path | str, clip: Clip, *, comment: str, overwrite: bool = False) -> Path:
    """Write a clip for looking at, as .mp4, .webp or .gif by its suffix.

    Args:
        path: where to; an .mp4 is lossy H.264, a .gif has 256 colours per frame.
        clip: any clip, shown as `viewable` says; `framed`, `strip` and `grid` make what is worth saving.
        comment: that the video is generated, and by which model; kept in the file.
        overwrite: replace a file that is there already.
    """
    frames = viewable(clip)
    if Path(path).suffix.lower() == ".mp4":
        return video_file.write_video(path, frames, clip.fps, comment=comment, overwrite=overwrite)
    return image_file.write_animation(path, frames, clip.fps, comment=comment, overwrite=overwrite)


def save_framed(
    path: Path | str, clip: Clip, known: Sequence[bool] | None = None, *, plain: bool = False, comment: str
) -> Path:
    """Write a clip as `framed` shows it and `save_view` writes it; of an .mp4 only a few frames are held at once.

    Args:
        path: where to.
        clip: any clip.
        known: for every frame, True where it was given; None: no edges.
        plain: leave the edges out.
        comment: see `save_view`.
    """
    if Path(path).suffix.lower() != ".mp4":
        return save_view(path, framed(clip, known, plain=plain), comment=comment)
    starts = range(0, len(clip), _BLOCK)
    blocks = (framed(clip[i : i + _BLOCK], known[i : i + _BLOCK] if known else None, plain=plain) for i in starts)
    shown = (block.frames for block in blocks)
    return video_file.write_video(path, shown, clip.fps, comment=comment)


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("a picture needs at least one video.")
    sizes = {tuple(row.clip.frames.shape[-2:]) for row in rows}
    if len(sizes) > 1:
        raise ValueError(f"videos in one picture need one size, got {sorted(sizes)}.")


def _chosen(row: Row, frames: Sequence[int], *, plain: bool) -> dict[int, Tensor]:
    """Those of the frames that the row has, as they are shown, by index."""
    at = [i for i in dict.fromkeys(frames) if 0 <= i < len(row.clip)]
    known = [row.known[i] for i in at] if row.known is not None else None
    few = Row(row.label, replace(row.clip, frames=row.clip.frames[at]), known)
    return dict(zip(at, _cells(few, plain=plain), strict=True))


def _cells(row: Row, *, plain: bool) -> Tensor:
    """The frames of a row, all rows of one size: a frame without an edge has a margin instead."""
    shown = framed(row.clip, plain=True).frames
    return shown if plain else _edged(shown, row.known)


def _edged(frames: Tensor, known: Sequence[bool] | None) -> Tensor:
    """A border around each frame."""
    edge = max(2, min(frames.shape[-2:]) // 48)
    height, width = frames.shape[-2] + 2 * edge, frames.shape[-1] + 2 * edge
    out = torch.full((len(frames), 3, height, width), _PAPER, dtype=torch.uint8)
    if known is not None:
        colours = torch.tensor([_GIVEN if given else _MADE for given in known], dtype=torch.uint8)
        out[:] = colours[:, :, None, None]
    out[..., edge:-edge, edge:-edge] = frames
    return out


def _sheet(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), _PAPER, dtype=torch.uint8)


def _text(text: str) -> np.ndarray:
    return image_file.text_line(text, _FONT)


def _write(sheet: Tensor, text: str, *, y: int, x: int) -> None:
    """Letters onto a sheet, cut off at its border."""
    y = max(0, y)
    letters = torch.from_numpy(_text(text).astype(np.float32) / 255)[: sheet.shape[1] - y, : sheet.shape[2] - x]
    height, width = letters.shape
    shade = _PAPER + (_INK - _PAPER) * letters
    sheet[:, y : y + height, x : x + width] = shade.round().to(torch.uint8)
