# SPDX-License-Identifier: Apache-2.0
"""Video files in and out; the only file that knows the decoder library.

Opening walks the packets once, without decoding, and notes the time stamp of every frame and which of them are key
frames. Reading seeks to the key frame before the first wanted frame, decodes on, and recognises frames by time stamp,
so any frame is exact and nothing is decoded beyond the last one wanted. One decoding thread: frame threads that are
left early can dead-lock, and loaders bring their own processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from framecast.data.files import BadClip, new_file, view_rate

_SUFFIXES = """
.3gp .apng .asf .avi .flv .gif .h264 .hevc .ivf .m2ts .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogv .ts .vob
.webm .wmv .y4m"""
SUFFIXES = frozenset(_SUFFIXES.split())
# Containers by their names in the decoder library. Without this list a text file can pass as a playlist that names
# other files and addresses, or as a picture made of letters.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,gif,apng,asf,flv,h264,hevc,ivf,m4v,mjpeg,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "yuv4mpegpipe"
)
_TELL_ALL = ("mov,", "matroska,")  # containers whose header describes every stream; others are known by looking on
_WORTH_A_SEEK = 4  # frames; decoding up to so many unwanted ones costs less than another seek
_BLOCK = 16  # frames written at a time
_CONVERTERS = 32  # that a thread keeps at most
_BT601 = 6  # code of the SMPTE 170M matrix (ITU-T H.273, table 4)


@dataclass(frozen=True)
class VideoFile:
    """A video in a file, seen as frames 0 to `frames` - 1 in the order in which they are shown."""

    path: Path
    frames: int
    fps: float | None  # where frames come at varying times, their average rate
    channels: int  # 1 where the file stores grey, else 3
    height: int  # pixels, after the rotation that the file asks for
    width: int
    times: np.ndarray | None  # (frames,) seconds from the first frame
    stream: int  # index in the container
    promised: int  # frames that the header claims; 0: it does not say
    turns: int  # quarter turns, counterclockwise, that the file asks for
    value_range: None = None
    _pts: np.ndarray | None = field(default=None, repr=False)  # (frames,) time stamps, None: frames must be counted
    _starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)  # time stamps of key frames
    _brief: bool = field(default=False, repr=False)  # opened for reading by its header alone

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` as (n, C, H, W) uint8, in any order, repeats allowed.

        Raises:
            BadClip: a frame that the file does not have, or that cannot be decoded.
        """
        for i in indices:
            if not 0 <= i < self.frames:
                cut = f"; its header promises {self.promised}, so it was cut short" if self.promised > i else ""
                raise BadClip(f"{self.path}: frame {i} asked for, the file has frames 0 to {self.frames - 1}{cut}.")
        wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        out = torch.empty((len(wanted), self.channels, self.height, self.width), dtype=torch.uint8)
        for first, last in self._runs(wanted):
            try:
                self._read_run(wanted[first:last], out[first:last])
            except BadClip:
                if not self._brief:
                    raise
                # a header may leave out how far frames are out of order, which then makes the decoder drop some
                dataclasses.replace(self, _brief=False)._read_run(wanted[first:last], out[first:last])
        places = places.reshape(-1)
        in_order = np.array_equal(places, np.arange(len(wanted)))  # as nearly always: a copy of all less
        return out if in_order else out[torch.from_numpy(places)]

    def key_frame(self, number: int) -> int:
        """The frame that decoding must begin with for frame `number`."""
        return self._key(number)[1]

    def without_seeking(self) -> VideoFile:
        """The same video, always decoded from its start; for comparisons."""
        return dataclasses.replace(self, _starts=self._starts[:1])

    def _key(self, number: int) -> tuple[int, int]:
        """The key frame to decode from for frame `number`: its rank among key frames, and its own number."""
        if self._pts is None:
            return 0, 0
        rank = int(np.searchsorted(self._starts, self._pts[number], side="right")) - 1
        return rank, int(np.searchsorted(self._pts, self._starts[rank]))

    def _runs(self, wanted: np.ndarray) -> Iterator[tuple[int, int]]:
        """Ranges of `wanted` between which a seek saves decoding."""
        first = 0
        for i in range(1, len(wanted)):
            if self._key(wanted[i])[1] - wanted[i - 1] > _WORTH_A_SEEK:
                yield first, i
                first = i
        if len(wanted):
            yield first, len(wanted)

    def _read_run(self, wanted: np.ndarray, out: Tensor) -> None:
        """Decode from the key frame before `wanted[0]` to `wanted[-1]`."""
        rank, _ = self._key(wanted[0])
        done = 0
        for number, frame in _decoded(self, rank):
            if number > wanted[done]:
                break  # the wanted frame never came out
            if number == wanted[done]:
                out[done] = torch.from_numpy(_pixels(frame, self)).permute(2, 0, 1)
                done += 1
                if done == len(wanted):
                    return
        raise BadClip(f"{self.path}: decoder stopped at frame {wanted[done]} (no picture came out).")


def open_video(path: Path | str, *, stream: int | None = None) -> VideoFile:
    """Open a video by its packets; of its pictures only the first is decoded.

    Args:
        path: the file.
        stream: which of its videos, counted from 0; None: the one marked as default, else the first.

    Raises:
        BadClip: not a video, or one without a decodable frame.
    """
    path = Path(path)
    container = _container(path)
    try:
        track = _track(container, path, stream)
        walk = _walk(container, track)
        if not walk.shown:
            raise BadClip(f"{path}: its video has no frames.")
        times, fps = _timing(walk, track.time_base, track.average_rate or track.guessed_rate)
        draft = VideoFile(
            path=path,
            frames=walk.shown,
            fps=fps,
            channels=3,
            height=0,
            width=0,
            times=times,
            stream=track.index,
            promised=track.frames - walk.hidden,
            turns=0,
            _pts=walk.pts,
            _starts=walk.starts,
        )
        brief = container.format.name.startswith(_TELL_ALL)
    finally:
        container.close()
    return dataclasses.replace(_with_first_picture(draft), _brief=brief)


def write_video(
    path: Path | str,
    frames: Tensor | Iterable[Tensor],
    fps: float | None,
    *,
    comment: str,
    title: str = "Generated video",
    key_every: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a video that every player shows: mp4, H.264, yuv420p. Lossy: for viewing, never for evaluation.

    Odd sides grow by one pixel (the edge repeated), which yuv420p needs.

    Args:
        path: ends in .mp4.
        frames: (T, C, H, W) uint8 with 1 or 3 channels, or such blocks in order, of which one is held.
        fps: frames per second; None where the source has no time; see `view_rate`.
        comment: says that the video is generated, and by which model; kept in the file.
        title: kept in the file, too.
        key_every: frames from one key frame to the next: fewer make a larger file that is quicker to read in parts;
            None: 250, and one where the picture changes.
        overwrite: replace a file that is there already.

    Raises:
        FileExistsError: a file is there and `overwrite` is False.
        ValueError: frames of another kind.
    """
    path = Path(path)
    blocks = iter(frames.split(_BLOCK) if isinstance(frames, Tensor) else frames)
    first = next(blocks, torch.zeros(0))
    if first.dtype != torch.uint8 or first.ndim != 4 or first.shape[1] not in (1, 3) or not len(first):
        raise ValueError(
            f"a video is written from uint8 frames (T, 1 or 3, H, W), got {first.dtype} {tuple(first.shape)}."
        )
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path}: videos are written as .mp4; name the file so.")
    height, width = first.shape[-2:]
    rate = Fraction(view_rate(fps)).limit_denominator(1001)  # 29.97… is 30000 / 1001
    with (
        new_file(path, overwrite=overwrite) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata.update({"title": title, "comment": comment})
        options = {"crf": "15", "preset": "medium"}
        if key_every is not None:
            options |= {"g": str(key_every), "sc_threshold": "0"}
        track = container.add_stream("libx264", rate=rate, options=options)
        track.height, track.width = height + height % 2, width + width % 2
        track.pix_fmt, track.codec_context.thread_count = "yuv420p", 1
        track.codec_context.colorspace = _BT601  # what the conversion from RGB uses; untagged, players guess by size
        for block in itertools.chain([first], blocks):
            pixels = block.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
            for picture in np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge"):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def _container(path: Path, *, probe: dict[str, str] | None = None) -> Any:
    """The file opened for reading, or a BadClip that says why not; `probe`: how far to look into its streams."""
    if not path.is_file():
        raise BadClip(f"{path}: there is no such file.")
    if not path.stat().st_size:
        raise BadClip(f"{path}: the file is empty.")
    try:
        return av.open(str(path), options={"format_whitelist": _CONTAINERS, **(probe or {})}, metadata_errors="ignore")
    except (av.FFmpegError, UnicodeError) as error:
        why = "its end, where the list of frames is kept, is missing" if _is_cut_mp4(path) else _reason(error)
        raise BadClip(f"{path}: not a readable video ({why}).") from None


def _is_cut_mp4(path: Path) -> bool:
    """True for an mp4 that begins as one should and whose boxes run past the end of the file."""
    size, at = path.stat().st_size, 0
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            if at == 0 and head[4:8] != b"ftyp":
                return False
            length = int.from_bytes(head[:4])
            at += int.from_bytes(head[8:16]) if length == 1 else max(length, 8)
    return at > size


def _reason(error: Exception) -> str:
    """The decoder library's own words, without number and path."""
    return str(getattr(error, "strerror", None) or error).strip().rstrip(".").lower()


def _track(container: Any, path: Path, stream: int | None) -> Any:
    """The chosen video of a container; covers of music files and preview pictures do not count."""
    aside = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    videos = [s for s in container.streams.video if not s.disposition & aside]
    if not videos and _is_cut_mp4(path):
        raise BadClip(f"{path}: not a readable video (it is cut short within its list of frames).")
    if not videos:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise BadClip(f"{path}: there is no video in it, only {' and '.join(kinds)}.")
    if stream is not None and not 0 <= stream < len(videos):
        raise BadClip(f"{path}: video {stream} asked for, it holds videos 0 to {len(videos) - 1}.")
    usual = next((s for s in videos if s.disposition & av.stream.Disposition.default), videos[0])
    chosen = usual if stream is None else videos[stream]
    if chosen.codec_context is None:
        raise BadClip(f"{path}: its video is in a format that the decoder does not know.")
    return chosen


@dataclass(frozen=True)
class _Walk:
    """What the packets of a video tell."""

    pts: np.ndarray | None  # time stamps in order of showing; None: the container cannot order frames
    starts: np.ndarray  # time stamps of key frames
    shown: int  # frames
    hidden: int  # packets that are decoded and never shown


def _walk(container: Any, track: Any) -> _Walk:
    """Read all packets without decoding.

    A container cannot order frames where it stores no time stamps, or where (AVI with frames that are shown in another
    order than they are stored) those it makes up are wrong.
    """
    stamps: list[int | None] = []
    key: list[bool] = []
    hidden: list[bool] = []
    vp8 = track.codec_context.name == "vp8"
    try:
        for packet in container.demux(track):
            # packets of no size repeat a frame or end the stream, corrupt ones are the torn last packet of a file
            if packet.size and not packet.is_corrupt:
                stamps.append(packet.pts)
                key.append(packet.is_keyframe)
                # what an edit list cuts off, and VP8's pictures for reference only (bit show_frame, RFC 6386, 9.1)
                hidden.append(packet.is_discard or (vp8 and not bytes(packet)[0] & 0x10))
    except av.FFmpegError:
        pass  # what follows cannot be reached; the frames before can
    count = len(stamps) - sum(hidden)
    visible = [stamp for stamp, out in zip(stamps, hidden) if not out]
    reordered_avi = container.format.name == "avi" and track.codec_context.has_b_frames
    if reordered_avi or None in stamps or len(set(visible)) < count:
        return _Walk(None, np.zeros(0, np.int64), count, len(stamps) - count)
    pts = np.sort(np.asarray(visible, np.int64))
    starts = np.sort(np.asarray([stamp for stamp, is_key in zip(stamps, key) if is_key] or pts[:1], np.int64))
    pts = pts[pts >= starts[0]] if len(starts) else pts  # nothing before the first key frame can be decoded
    return _Walk(pts, starts, len(pts), len(stamps) - count)


def _timing(walk: _Walk, unit: Fraction, rate: Fraction | None) -> tuple[np.ndarray | None, float | None]:
    """Seconds of every frame, and frames per second: the header's word where the time stamps bear it out."""
    count, stated = walk.shown, float(rate) if rate else None
    if walk.pts is None:
        return (np.arange(count) / stated if stated else None), stated
    times = (walk.pts - walk.pts[0]) * float(unit)
    if count < 2:
        return times, stated
    if stated is not None and np.abs(times - np.arange(count) / stated).max() < 0.25 / stated:
        return times, stated
    return times, (count - 1) / float(times[-1])


def _with_first_picture(draft: VideoFile) -> VideoFile:
    """The draft completed by what only a picture tells: its true size, whether it is grey, and how it is turned."""
    frame = next((frame for _, frame in _decoded(draft, 0)), None)
    if frame is None:
        raise BadClip(f"{draft.path}: decoder stopped at frame 0 (no picture came out).")
    turns = round(frame.rotation / 90) % 4
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    grey = frame.format.name.startswith(("gray", "ya", "mono"))
    fields = {"channels": 1 if grey else 3, "height": height, "width": width, "turns": turns}
    return dataclasses.replace(draft, **fields)


def _decoded(video: VideoFile, rank: int) -> Iterator[tuple[int, Any]]:
    """Frames with their numbers, from key frame number `rank` of the file on, until the caller stops asking."""
    with _opened(video) as (container, track):
        packets = _packets_from(video, container, track, rank)
        if packets is not None:
            yield from _numbered(video, track, packets, rank)
            return
    with _opened(video) as (container, track):  # afresh: no seek that failed has moved it
        yield from _numbered(video, track, container.demux(track), 0)


@contextmanager
def _opened(video: VideoFile) -> Iterator[tuple[Any, Any]]:
    container = _container(video.path, probe={"probesize": "32"} if video._brief else None)
    try:
        if video.stream >= len(container.streams):
            raise BadClip(f"{video.path}: its video begins too late in the file to be found again.")
        track = container.streams[video.stream]
        track.codec_context.thread_count = 1
        yield container, track
    finally:
        container.close()


def _packets_from(video: VideoFile, container: Any, track: Any, rank: int) -> Iterator[Any] | None:
    """Packets from the key frame number `rank` or an earlier one on; None where the container cannot seek there."""
    if video._pts is None or rank == 0:
        return container.demux(track)
    stamps = video._starts
    for earlier in range(rank, max(0, rank - 3), -1):  # some containers land on a later key frame than asked for
        try:
            container.seek(int(stamps[earlier]), stream=track, backward=True)
            packets = container.demux(track)
            start = next((p for p in packets if p.size and p.is_keyframe), None)
        except av.FFmpegError:
            return None
        if start is not None and start.pts is not None and start.pts <= stamps[rank]:
            return itertools.chain([start], packets)
    return None


def _numbered(video: VideoFile, track: Any, packets: Iterator[Any], rank: int) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their numbers, in order of showing."""
    if video._pts is None:  # only counting from the start tells which frame it is
        yield from enumerate(_pictures(video, track, packets, first=None))
        return
    for frame in _pictures(video, track, packets, first=int(video._starts[rank])):
        number = int(np.searchsorted(video._pts, frame.pts))
        if number < video.frames and video._pts[number] == frame.pts:
            yield number, frame


def _pictures(video: VideoFile, track: Any, packets: Iterator[Any], *, first: int | None) -> Iterator[Any]:
    """Decoded pictures, without those shown before the time stamp `first`: they build on what was not decoded."""
    shown = 0
    for packet in itertools.chain((p for p in packets if p.size), [None]):
        failure, stamp = "", None if packet is None else packet.pts
        try:
            pictures = track.codec_context.decode(packet)
        except av.FFmpegError as error:
            if first is not None and stamp is not None and stamp < first:
                continue
            failure, pictures = _reason(error), _held_back(track)
        for frame in pictures:
            if first is not None and frame.pts < first:
                continue
            if frame.is_corrupt:  # the decoder would go on with a guess at what was shown
                failure, stamp = "damaged picture", frame.pts
                break
            yield frame
            shown += 1
        if failure:
            known = video._pts is not None and stamp is not None
            number = int(np.searchsorted(video._pts, stamp)) if known else shown  # type: ignore[arg-type]
            raise BadClip(f"{video.path}: decoder stopped at frame {number} ({failure}).")


def _held_back(track: Any) -> list[Any]:
    """Pictures that the decoder had finished before it failed."""
    try:
        return track.codec_context.decode(None)
    except av.FFmpegError:
        return []


class _Kept(threading.local):
    """Converters that a thread keeps from one reading to the next."""

    def __init__(self) -> None:
        self.converters: dict[tuple[Any, ...], VideoReformatter] = {}


_KEPT = _Kept()


def _converter(frame: Any) -> VideoReformatter:
    """This thread's converter of such frames: to set one up takes as long as several pictures.

    One that has seen other colours may keep their matrix, so that each kind of frame has its own.
    """
    kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
    kept = _KEPT.converters
    if kind not in kept:
        if len(kept) >= _CONVERTERS:
            kept.clear()
        kept[kind] = VideoReformatter()
    return kept[kind]


def _pixels(frame: Any, video: VideoFile) -> np.ndarray:
    """One picture as (H, W, C) uint8: turned upright, alpha dropped, deep colours in 8 bit."""
    pixels = _converter(frame).reformat(frame, format="gray" if video.channels == 1 else "rgb24").to_ndarray()
    pixels = np.rot90(pixels.reshape(*pixels.shape[:2], -1), video.turns)
    if pixels.shape[:2] != (video.height, video.width):
        raise BadClip(
            f"{video.path}: its size changes from {video.width}x{video.height} to {pixels.shape[1]}x{pixels.shape[0]}."
        )
    return np.ascontiguousarray(pixels)
