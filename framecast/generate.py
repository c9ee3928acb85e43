# SPDX-License-Identifier: Apache-2.0
"""From a system to an answer: windows run in order of time, verbs over clips, results that carry their record.

`stream` and `complete` work on Videos (float32, -1 to 1) and know no file; `Model` speaks in Clips, in the clip's own
units, draws samples in chunks and returns a `Forecast`, which can be saved.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framecast import __version__
from framecast.data.appearance import unlike
from framecast.diffusion.bound import BINS
from framecast.draws import Draws, draws
from framecast.experiment import SampleOptions, from_plain, to_plain
from framecast.forecast import Forecast, free_folder
from framecast.reconstruction import Reconstruction, decoded, encoded
from framecast.score import Score, frame_bits
from framecast.system import Carry, Codec, CodeScorer, Scorer, System
from framecast.systems import SYSTEMS, presets
from framecast.task import Task, UnsupportedTask, Window
from framecast.video import Clip, Video, from_video, to_video

__all__ = ["Forecast", "Model", "Reconstruction", "Score", "complete", "free_folder", "plan", "stream"]

IN_MEMORY = 2**26  # bytes of drawn frames that are held in memory; more go to a file in the folder of temporary ones
Progress = Callable[[int, int], None]  # network calls done, network calls in all


def plan(system: System, task: Task, options: SampleOptions | None = None) -> list[Window]:
    """The windows by which `system` answers `task`.

    Raises:
        UnsupportedTask: it cannot; the message says what it needs and which systems can.
    """
    try:
        return system.plan(task.known, options or system.options)
    except UnsupportedTask as error:
        raise UnsupportedTask(f"{error}{_who_can(task.verb, besides=system.name)}") from None


def _who_can(verb: str, *, besides: str) -> str:
    others = [name for name, row in SYSTEMS.items() if verb in row.tasks and name != besides]
    return f" Systems that {verb}: {', '.join(others)}." if others else ""


def stream(
    system: System, given: Video, task: Task, *, rng: Draws, options: SampleOptions | None = None
) -> Iterator[Video]:
    """Complete a video window by window, in constant memory.

    Frames are kept only until they are handed out and no later window needs them. What windows draw below frame 0 or
    past the end is dropped.

    Args:
        system: in evaluation mode.
        given: the known frames in order of time, (B, known frames, C, H, W); (B, 0, C, H, W) to generate.
        task: which frames of the wanted video those are.
        rng: one row per video of the batch.
        options: this system's sampling options; its own defaults if None.

    Returns:
        Consecutive finished blocks of the wanted video, known frames included, each as soon as it is finished.

    Raises:
        UnsupportedTask: the system cannot answer such a task.
        ValueError: `given` does not hold the known frames of the task in the system's frame size.
    """
    options = options or system.options
    spec = system.video
    if given.ndim != 5 or given.shape[1] != sum(task.known):
        raise ValueError(
            f"the task has {sum(task.known)} known frames, so given frames must be (batch, {sum(task.known)}, channels,"
            f" height, width); their shape is {tuple(given.shape)}."
        )
    if not spec.takes(*given.shape[2:]):
        raise ValueError(_misfit(spec, tuple(given.shape[2:])))
    return _run(system, given, task, plan(system, task, options), rng=rng, options=options)


def complete(system: System, given: Video, task: Task, *, rng: Draws, options: SampleOptions | None = None) -> Video:
    """The whole wanted video at once, (B, len(task), C, H, W): all blocks of `stream` in a row."""
    return torch.cat(list(stream(system, given, task, rng=rng, options=options)), dim=1)


def _run(
    system: System, given: Video, task: Task, windows: list[Window], *, rng: Draws, options: SampleOptions
) -> Iterator[Video]:
    place = {frame: k for k, frame in enumerate(i for i, known in enumerate(task.known) if known)}
    last_use = {frame: n for n, window in enumerate(windows) for frame in window.frames}
    as_model_made = options.given == "model"
    drawn: dict[int, Tensor] = {}  # frames that later windows may need
    shown: dict[int, Tensor] = {}  # frames that wait to be handed out
    at, carry = 0, None
    if not windows:
        yield given
        return
    for n, window in enumerate(windows):
        frames = [drawn[i] if i in drawn else given[:, place[i]] if k else None for i, k in _pairs(window)]
        made, carry = _sample(system, given, frames, rng=rng, options=options, carry=carry)
        for position, (frame, known) in enumerate(_pairs(window)):
            if not 0 <= frame < len(task):
                continue
            if not known:
                drawn[frame] = shown[frame] = made[:, position]
            elif as_model_made and frame in place and frame >= at:
                shown.setdefault(frame, made[:, position])
        block: list[Tensor] = []
        while at < len(task):
            # a given frame is final from the start, unless the model's view of it is wanted and still to come
            if at in place and at not in shown and (not as_model_made or last_use.get(at, -1) <= n):
                block.append(given[:, place[at]])
            elif at in shown:
                block.append(shown.pop(at))
            else:
                break
            at += 1
        if block:
            yield torch.stack(block, dim=1)
        for frame in [frame for frame in drawn if last_use[frame] <= n]:
            del drawn[frame]
    if at < len(task):
        raise AssertionError(f"the plan of {system.name} never draws frame {at}.")


def _pairs(window: Window) -> list[tuple[int, bool]]:
    return list(zip(window.frames, window.known, strict=True))


@torch.no_grad()
def _sample(
    system: System, given: Video, frames: list[Tensor | None], *, rng: Draws, options: SampleOptions, carry: Carry
) -> tuple[Video, Carry]:
    """One window; unknown frames (None) go in as zeros."""
    blank = given.new_zeros(given.shape[:1] + given.shape[2:])
    video = torch.stack([blank if frame is None else frame for frame in frames], dim=1)
    known = torch.tensor([frame is not None for frame in frames], device=given.device)
    return system.sample(video, known, rng=rng, options=options, carry=carry)


def _misfit(spec: Any, shape: tuple[int, ...]) -> str:
    wanted = " × ".join(map(str, (spec.channels, spec.height, spec.width)))
    return (
        f"the model takes {wanted} (channels, height, width), the frames are {' × '.join(map(str, shape))}: read the "
        "clip with framecast.read(path, like=model), which fits it."
    )


@contextmanager
def _watched(system: System, progress: Progress | None, *, total: int) -> Iterator[None]:
    """Report every call that `system` counts while the body runs."""
    if progress is None or not total:
        yield
        return
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done = min(done + 1, total - 1)  # the estimate may be short; the last call is reported by the end
        progress(done, total)

    hooks = [module.register_forward_hook(tick) for module in system.watched()]
    try:
        yield
        progress(total, total)
    finally:
        for hook in hooks:
            hook.remove()


class Model:
    """A system with a name: the verbs over clips.

    Every verb draws `samples` videos; sample i depends on the seed and on i alone, whatever their number and however
    they are batched.
    """

    def __init__(
        self, system: System, *, name: str = "", digest: str = "", provenance: Mapping[str, Any] | None = None,
        untrained: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.system = system.eval()
        self.name = name or system.name
        self.digest = digest  # sha256 over the weights, for the record
        self.provenance = dict(provenance or {})  # what the model folder says of its training
        self.untrained = dict(untrained or {})  # parts that are not trained yet -> what to do about it, a sentence

    def __repr__(self) -> str:
        v = self.video
        size = f"{v.channels}×{v.height}×{v.width}" if v.height else "any size"
        return f"Model({self.name}: {self.system.name}, {v.clip_frames} frames of {size})"

    @property
    def video(self) -> Any:
        """The clips it was made for, a VideoSpec."""
        return self.system.video

    @property
    def tasks(self) -> tuple[str, ...]:
        """Verbs its system can answer."""
        row = SYSTEMS.get(self.system.name)
        return row.tasks if row else self.system.tasks

    @property
    def nets(self) -> dict[str, nn.Module]:
        """The trained modules, for loops of your own."""
        return self.system.parts()

    @property
    def schedule(self) -> Any:
        """The noise schedule, where the system has one; else None."""
        return getattr(self.system, "schedule", None)

    @property
    def context(self) -> int:
        """Known frames it continues from when nobody says otherwise."""
        return self.system.context

    def unlike(self, clip: Clip, task: Task | None = None) -> str | None:
        """A sentence where a clip does not look like those the model was trained on: what it draws then means little.

        Args:
            clip: fitted to the model.
            task: only the frames it knows are looked at: those of the clip, or all of the clip where it has no others;
                None: all.

        Returns:
            None where it does look like them, and where the model does not tell what they looked like.
        """
        told = self.provenance.get("appearance")
        if not isinstance(told, Mapping) or not len(clip):
            return None
        at = [i for i, known in enumerate(task.known) if known] if task else list(range(len(clip)))
        if len(clip) != len(at):
            clip = replace(clip, frames=clip.frames[at])
        if not at or (differs := unlike(told, to_video(clip), at)) is None:
            return None
        kind = told.get("set") or self.provenance.get("data") or "its clips"
        return (
            f"this clip does not look like what {self.name} was trained on ({kind}: {differs}): expect nonsense; train "
            f"on clips of its kind: framecast train {_small_preset(self.system.name)} --data DIR"
        )

    def options(self, changes: dict[str, Any] | None = None) -> SampleOptions:
        """The model's sampling options with these changed.

        Raises:
            ValueError: no such option, or a value it cannot take.
        """
        base = self.system.options
        changes = {key: value for key, value in (changes or {}).items() if value is not None}
        return from_plain(type(base), {**to_plain(base), **changes}, where="sample")

    def predict(
        self, clip: Clip, horizon: int, *, samples: int = 1, steps: int | str | None = None, sampler: str | None = None,
        seed: int = 0, context: int | None = None, options: dict[str, Any] | None = None, batch: int = 8,
        progress: Progress | None = None,
    ) -> Forecast:  # fmt: skip
        """Continue a clip by `horizon` frames.

        Args:
            clip: its first `context` frames are given; frames after those are kept as the truth to compare with.
            horizon: frames to draw.
            samples: futures.
            steps: sampler steps; None: the model's default.
            sampler: its name; None: the model's default.
            seed: of all noise.
            context: known frames; None: the whole clip.
            options: further sampling options of the system, by name.
            batch: samples drawn at once.
            progress: called with network calls done and in all.

        Raises:
            UnsupportedTask: the system cannot; the message says what can.
            ValueError: a clip that does not fit the model, or settings out of range.
        """
        count = len(clip) if context is None else context
        if count > len(clip):
            raise ValueError(f"the clip has {len(clip)} frames, the context needs {count}: give a longer clip.")
        task = Task.predict(count, horizon)
        return self._answer(
            task, clip[:count], clip.frames[: count + horizon], samples=samples, seed=seed, batch=batch,
            options=self.options({"steps": steps, "sampler": sampler, **(options or {})}), progress=progress,
        )  # fmt: skip

    def infill(
        self, clip: Clip, known: Sequence[int], *, samples: int = 1, steps: int | str | None = None,
        sampler: str | None = None, seed: int = 0, options: dict[str, Any] | None = None, batch: int = 8,
        progress: Progress | None = None,
    ) -> Forecast:  # fmt: skip
        """Draw the frames of a clip that are not `known` (indices from 0) from those that are.

        What the clip holds elsewhere is never looked at, and kept as the truth to compare with.
        """
        task = Task.infill(known, len(clip))
        given = replace(clip, frames=clip.frames[[i for i, k in enumerate(task.known) if k]])
        return self._answer(
            task, given, clip.frames, samples=samples, seed=seed, batch=batch,
            options=self.options({"steps": steps, "sampler": sampler, **(options or {})}), progress=progress,
        )  # fmt: skip

    def interpolate(
        self, clip: Clip, factor: int = 2, *, samples: int = 1, steps: int | str | None = None,
        sampler: str | None = None, seed: int = 0, options: dict[str, Any] | None = None, batch: int = 8,
        progress: Progress | None = None,
    ) -> Forecast:  # fmt: skip
        """Raise the frame rate `factor` times: factor - 1 new frames between every two; the duration stays."""
        task = Task.interpolate(len(clip), factor)
        faster = replace(clip, fps=clip.fps * factor if clip.fps else None)
        return self._answer(
            task, faster, None, samples=samples, seed=seed, batch=batch,
            options=self.options({"steps": steps, "sampler": sampler, **(options or {})}), progress=progress,
        )  # fmt: skip

    def generate(
        self, n: int = 1, frames: int | None = None, *, steps: int | str | None = None, sampler: str | None = None,
        seed: int = 0, options: dict[str, Any] | None = None, batch: int = 8, progress: Progress | None = None,
    ) -> Forecast:  # fmt: skip
        """Draw `n` new clips of `frames` frames (None: the model's clip length), in the units of its training data."""
        spec = self.video
        whole = tuple(map(float, spec.value_range)) == (0.0, 255.0)
        task = Task.generate(spec.clip_frames if frames is None else frames)
        plan(self.system, task)  # one that cannot generate may have no frame size either
        empty = torch.zeros(0, spec.channels, spec.height, spec.width, dtype=torch.uint8 if whole else torch.float32)
        given = Clip(empty, fps=spec.fps, value_range=None if whole else tuple(spec.value_range))
        return self._answer(
            task, given, None, samples=n, seed=seed, batch=batch,
            options=self.options({"steps": steps, "sampler": sampler, **(options or {})}), progress=progress,
        )  # fmt: skip

    def reconstruct(self, clip: Clip, *, views: Sequence[str] = (), progress: Progress | None = None) -> Reconstruction:
        """Encode and decode a clip, of any length from that of a piece of the codec on.

        Args:
            clip: that is encoded, piece by piece.
            views: parts of the code from which alone the clip is decoded as well, of `model.codec.views`.
            progress: called with pieces encoded and in all.

        Raises:
            UnsupportedTask: the system has no codec.
            ValueError: a clip that does not fit the model or is shorter than a piece, or no such part of the code.
        """
        codec = self.codec
        self._fits(clip)
        if wrong := [view for view in views if view not in codec.views]:
            has = f"those are {', '.join(codec.views)}" if codec.views else "none of them can be shown alone"
            raise ValueError(f"{wrong[0]!r} is no part of {self.name}'s codes; {has}.")
        began = time.perf_counter()
        codes = encoded(codec, clip, device=self.system.device, progress=progress)
        video = decoded(codec, codes, clip)
        seconds = time.perf_counter() - began
        only = {view: decoded(codec, [codec.only(code, view) for code in codes], clip) for view in views}
        record = self._record(Task("reconstruct", (False,) * len(clip)), {}, seed=0, samples=1, seconds=seconds)
        return Reconstruction(clip, codec, codes, video, only, record)

    @property
    def codec(self) -> Codec:
        """What encodes and decodes clips.

        Raises:
            UnsupportedTask: the system has none.
            ValueError: it has one, which is not trained.
        """
        codec = self.system.codec
        if codec is None:
            raise self._cannot("reconstruct", "has no encoder and decoder")
        self._trained(codec.parts)
        return codec

    def score(
        self, clip: Clip, *, context: int | None = None, levels: int | Literal["all"] | None = None, seed: int = 0,
        progress: Progress | None = None,
    ) -> Score:  # fmt: skip
        """How likely the model finds a clip: bits per dimension of every frame after the first `context` ones.

        An upper bound on -log2 of the probability that the model gives to the clip, known to a 255th of its value
        range (for 8-bit clips: to the grey level), per pixel and channel; lower is likelier. Of a model that draws
        codes: -log2 of the probability of the clip's codes, exactly, per code. See `Score` for what the number can and
        cannot tell.

        Args:
            clip: any length; what does not fit a window of the model is scored in later ones, given the frames before.
            context: leading frames that are given and not scored; None: as few as the system can do with, often none.
            levels: noise levels visited: more take longer and bound better; None: the system's own choice, or that
                there are none, as where codes are scored.
            seed: of the noise with which the bound is estimated.
            progress: called with network calls done and in all.

        Raises:
            UnsupportedTask: the system has no likelihood.
            ValueError: a clip that does not fit the model, a context of fewer frames than the system needs or one that
                leaves no frames to score, or none in whole windows, or levels that the model does not have.
        """
        self._fits(clip)
        self._trained()
        scorer, context = self._scorer(), self.given_to_score(len(clip), context)
        count = self._levels(scorer, levels)
        task = Task("score", tuple(i < context for i in range(len(clip))))
        windows, device = scorer.windows(task.known), self.system.device
        video, known = to_video(clip).to(device), torch.tensor(task.known, device=device)
        calls = scorer.calls(windows) if scorer.of == "codes" else scorer.calls(windows, count)
        (low, high), began = _range(clip), time.perf_counter()
        about: dict[str, Any]
        with torch.no_grad(), _watched(self.system, progress, total=calls):
            if scorer.of == "codes":
                maps = {level: bits[0] for level, bits in scorer.bits(video, known).items()}
                found = frame_bits(maps, len(clip) - context)
                about = {"uniform": dict(scorer.uniform), "notes": list(scorer.notes)}
            else:
                rng = draws(seed, [0], device)
                maps, found = {}, scorer.bits(video, known, rng=rng, levels=count)[0].cpu()
                about = {"levels": count, "most_levels": scorer.most_levels, "bin": (high - low) / BINS}
        record = self._record(task, {}, seed=seed, samples=1, seconds=time.perf_counter() - began) | about
        record |= {"fps": clip.fps, "value_range": [low, high]}
        record |= {"windows": [[w.frames[0], w.frames[-1]] for w in windows]}
        return Score(tuple(range(context, len(clip))), found, record, maps, clip)

    def _levels(self, scorer: Scorer | CodeScorer, levels: int | Literal["all"] | None) -> int:
        """How many noise levels are visited, once checked."""
        if scorer.of == "codes":
            if levels is not None:
                raise ValueError(
                    f"levels is {levels}, but {self.name} scores codes, exactly, and has no noise levels: leave it out."
                )
            return 1
        count = scorer.levels if levels is None else scorer.most_levels if levels == "all" else levels
        if not 1 <= count <= scorer.most_levels:
            raise ValueError(
                f"levels is {count}, but {self.name} scores by at most {scorer.most_levels} noise levels: ask for "
                "fewer, or for all."
            )
        return count

    def given_to_score(self, frames: int, context: int | None = None) -> int:
        """How many leading frames of a clip of so many frames are given when it is scored: `context`, once checked.

        Args:
            frames: of the clip.
            context: as for `score`.

        Raises:
            UnsupportedTask: the system has no likelihood.
            ValueError: too few, too many, or a number that leaves no whole windows.
        """
        scorer = self._scorer()
        needs, unit, window = scorer.context, 1, 1
        if scorer.of == "codes":
            unit, window = scorer.unit, scorer.frames
        had = f"{frames} {'frame' if frames == 1 else 'frames'}"
        if frames < window:
            raise ValueError(f"the clip has {had}, {self.name} scores windows of {window}: give a longer clip.")
        fits = needs + (frames - needs) % unit
        given = fits if context is None else context
        if given < needs:
            raise ValueError(f"context is {given}, but {self.name} needs {needs} or more given frames to score others.")
        if given >= frames:
            raise ValueError(f"context is {given}, the clip has {had}: leave at least one to score.")
        if (frames - given) % unit:
            raise ValueError(
                f"context is {given}, which leaves {frames - given} of {had} to score, but {self.name} scores {unit} at"
                f" once: take {fits}, or leave it out."
            )
        return given

    def _scorer(self) -> Scorer | CodeScorer:
        if self.system.scorer is None:
            raise self._cannot("score", "gives no likelihood")
        return self.system.scorer

    def _cannot(self, verb: str, lacks: str) -> UnsupportedTask:
        name = self.system.name
        who = self.name if self.name == name else f"{self.name} ({name})"
        return UnsupportedTask(f"{who} cannot {verb}: it {lacks}.{_who_can(verb, besides=name)}")

    def _trained(self, parts: Iterable[str] | None = None) -> None:
        """Refuse what needs a part that is not trained yet; None: all parts."""
        for part, told in self.untrained.items():
            if parts is None or part in parts:
                raise ValueError(told)

    def _fits(self, clip: Clip) -> None:
        spec = self.video
        if not spec.takes(*clip.frames.shape[1:]):
            raise ValueError(_misfit(spec, tuple(clip.frames.shape[1:])))

    def _answer(
        self, task: Task, given: Clip, truth: Tensor | None, *, samples: int, seed: int, batch: int,
        options: SampleOptions, progress: Progress | None,
    ) -> Forecast:  # fmt: skip
        if samples < 1 or batch < 1:
            raise ValueError(f"samples and batch must be at least 1, got {samples} and {batch}.")
        self._trained()
        self._fits(given)
        device = self.system.device
        start, windows = to_video(given).to(device), plan(self.system, task, options)
        chunks = [range(i, min(i + batch, samples)) for i in range(0, samples, batch)]
        video = _room((samples, len(task), *given.frames.shape[1:]), given.frames.dtype)
        began = time.perf_counter()
        calls = sum(self.system.calls(window, options) for window in windows)
        with _watched(self.system, progress, total=calls * len(chunks)):
            for rows in chunks:
                rng = draws(seed, rows, device)
                many = start.expand(len(rows), -1, -1, -1, -1)
                at = 0
                for block in stream(self.system, many, task, rng=rng, options=options):
                    video[rows.start : rows.stop, at : at + block.shape[1]] = from_video(block, given)
                    at += block.shape[1]
        if options.given == "exact":
            # the clip's own bits, not a trip to float and back
            video[:, list(task.known)] = given.frames
        seconds = time.perf_counter() - began
        record = self._record(task, to_plain(options), seed=seed, samples=samples, seconds=seconds)
        record |= {"fps": given.fps, "windows": len(windows), "batch": batch, "unlike": self.unlike(given, task)}
        return Forecast(video, task.known, given.fps, _range(given), record, truth)

    def _record(
        self, task: Task, options: dict[str, Any], *, seed: int, samples: int, seconds: float
    ) -> dict[str, Any]:
        made = samples * (len(task) - sum(task.known))
        lacks = {"untrained": list(self.untrained)} if self.untrained else {}
        return {
            "model": self.name,
            "system": self.system.name,
            "sha256": self.digest,
            "task": task.verb,
            "frames": len(task),
            "known_frames": [i for i, known in enumerate(task.known) if known],
            "samples": samples,
            "sample": options,
            "seed": seed,
            "seconds": round(seconds, 3),
            "frames_per_second": round(made / max(seconds, 1e-9), 3),
            "device": str(self.system.device),
            "versions": {"framecast": __version__, "torch": torch.__version__, "python": platform.python_version()},
            **lacks,
        }


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Where drawn frames go: memory, or where they are many a file without a name, so that long videos need none."""
    numbers = math.prod(shape)
    if numbers * dtype.itemsize <= IN_MEMORY:
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, numbers * dtype.itemsize)  # now, not in the middle of drawing
        except OSError as error:
            raise ValueError(
                f"the drawn frames take {numbers * dtype.itemsize / 1e9:.3g} GB, for which {tempfile.gettempdir()} has "
                f"no room ({error.strerror}): set TMPDIR to a folder that has, or draw fewer."
            ) from None
        return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype).view(shape)


def _small_preset(system: str) -> str:
    """A preset to begin with on clips of one's own."""
    found = [name for name in presets() if name.startswith(f"{system}/tiny")]
    return found[0] if found else "PRESET"


def _range(clip: Clip) -> tuple[float, float]:
    assert clip.value_range is not None
    return clip.value_range
