# SPDX-License-Identifier: Apache-2.0
"""Figures of sets of clips under a protocol: which clips are real, which are judged, and what networks say of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from torch import Tensor

from framecast.evaluate.dynamics import fields, memorisation
from framecast.evaluate.feature_cache import Network
from framecast.evaluate.plan import Plan, Stage
from framecast.evaluate.samples import Source
from framecast.evaluate.sets import (
    Features,
    RandomFeatures,
    SetFigure,
    frechet_figures,
    inception_figure,
    random_figures,
)
from framecast.evaluate.terms import Case, Cut
from framecast.evaluate.windows import Windows
from framecast.metrics.forecast import eight_bit
from framecast.video import Clip


@dataclass
class Found:
    """Figures of sets."""

    figures: dict[str, dict[str, SetFigure]] = field(default_factory=dict)  # by forecast
    curves: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by forecast: figures by frame
    missing: list[str] = field(default_factory=list)  # what could not be computed, and why
    data: dict[str, Any] = field(default_factory=dict)  # digest of the real clips, numbers of both sets


class ClipSets:
    """The sets of one case.

    Args:
        plan: what is judged how; its protocol looks at sets.
        case: of the protocol.
        stage: opens a stage of the work.
    """

    def __init__(self, plan: Plan, case: Case, stage: Stage):
        self.plan, self.case, self.stage = plan, case, stage
        self.rules = rules = plan.rules
        # an Inception Score alone looks at no real clips
        self.cut = rules.sets or Cut(how="random", clips=rules.inception.samples if rules.inception else None)
        reference = rules.real or rules.sets
        self.real: Windows | None = plan.cut(case, reference) if reference is not None else None
        self.judged: Windows | None = None  # that are completed
        if rules.task != "generate":
            self.judged = self.real if rules.real is None else plan.cut(case, self.cut)
        self.samples = min(self.cut.samples, plan.samples or self.cut.samples)  # of each window
        self.random = RandomFeatures()
        self.missing: list[str] = []
        self.size: tuple[int, ...] = ()  # of judged frames
        self.digest = ""  # sha256 over the real clips as networks see them, once all have been looked at

    @property
    def count(self) -> int:
        """How many clips are judged."""
        return len(self._places()) * self.samples

    def judge(self, source: Source, others: Sequence[Source]) -> Found:
        """All figures of a source, and of simple forecasts beside it.

        All of these are looked at where nothing but random filters look; where a large network does, persistence only.
        """
        found, groups = Found(missing=self.missing), self.rules.metrics
        shown = others if "rf3d" in groups else [other for other in others if other.name == "persistence"]
        for each in (source, *shown):
            try:
                found.figures[each.name] = self._random(each) | self._classified(each)
            except ValueError as error:
                if each is source:
                    raise
                self._miss(f"{each.name} is left out of the sets: {error}")
        mine = found.figures[source.name]
        if "rf3d*" in groups:
            mine |= self._random_beside_reconstructions(source)
        if "fvd*" in groups:
            mine |= self._beside_reconstructions(source)
        if "memorisation" in groups:
            mine |= self._memorised(source)
        if "field" in groups and self.real is not None:
            real, fake = self._real_clips(), self._fake_clips(source)
            with self.stage("periods and spectra", "sets"):
                figures, found.curves[source.name] = fields(real, fake, units=self.real.units)
            mine |= figures
        found.data = {
            "real_sha256": self.digest,
            "real": len(self.real or ()),
            "judged": self.count,
            "size": list(self.size),
        }
        return found

    def _random(self, source: Source) -> dict[str, SetFigure]:
        if self.real is None:
            return {}
        if not self._random_can_look():
            self._miss("rf3d-v1 is not computed: it takes 1 or 3 channels")
            return {}
        return self._tried("rf3d-v1", lambda: random_figures(self._real(self.random), self._fake(self.random, source)))

    def _random_can_look(self) -> bool:
        return self.real is not None and self.real.clips[0].frames.shape[1] in (1, 3)

    def _classified(self, source: Source) -> dict[str, SetFigure]:
        """What I3D and C3D say."""
        told: dict[str, SetFigure] = {}
        groups, networks, settings = self.rules.metrics, self.plan.networks, self.rules.inception
        for name in ("fvd", "r-fvd"):
            if name in groups and networks.i3d is None:
                self._miss(f"{name.upper()} is not computed: no I3D weights were given (--i3d FILE)")
            elif name in groups and networks.i3d is not None:
                real, fake = self._real(networks.i3d), self._fake(networks.i3d, source)
                told |= self._tried(name.upper(), partial(self._frechet, name, real, fake))
        if "is" in groups and settings is not None and networks.c3d is None:
            self._miss("the Inception Score is not computed: no C3D weights were given (--c3d FILE)")
        elif "is" in groups and settings is not None and networks.c3d is not None:
            real_values = None if self.real is None else self._real(networks.c3d).values
            fake_values = self._fake(networks.c3d, source).values
            splits = min(settings.splits, len(fake_values))
            told["is"] = inception_figure(real_values, fake_values, splits=splits, eps=settings.eps)
        return told

    def _beside_reconstructions(self, source: Source) -> dict[str, SetFigure]:
        """FVD*: the reference is what the model's codec makes of the real clips."""
        network = self.plan.networks.i3d
        if network is None:
            self._miss("FVD* is not computed: no I3D weights were given (--i3d FILE)")
            return {}

        def figures() -> dict[str, SetFigure]:
            if (real := self._reconstructed(network, source)) is not None:
                return self._frechet("fvd*", real, self._fake(network, source))
            self._miss("FVD* is not computed: the model has no codec to reconstruct real clips with")
            return {}

        return self._tried("FVD*", figures)

    def _random_beside_reconstructions(self, source: Source) -> dict[str, SetFigure]:
        """rf3d*; nothing of a model without a codec, or where rf3d itself cannot be computed."""
        if not self._random_can_look():
            return {}

        def figures() -> dict[str, SetFigure]:
            real = self._reconstructed(self.random, source)
            return {} if real is None else random_figures(real, self._fake(self.random, source), reconstructed=True)

        return self._tried("rf3d-v1*", figures)

    def _reconstructed(self, network: Network, source: Source) -> Features | None:
        """The real clips as the model's codec makes them; None where it has none.

        Given frames are the clips' own where the model's samples have them so: what a perfect prior draws is at zero.
        """
        windows, known = self.real, list(self.case.known)
        assert windows is not None
        if source.reconstructed(windows.clips[0]) is None:
            return None
        exact = source.record["sample"]["given"] == "exact"

        def made(clip: Clip) -> Tensor:
            video = source.reconstructed(clip)
            assert video is not None
            if exact:
                video[known] = clip.frames[known]
            return self._seen(video, clip.value_range)

        clips = map(made, windows.clips)
        values = self._features("reconstructions of real clips", network, clips, total=len(windows))
        return Features(values, windows.units)

    def _memorised(self, source: Source) -> dict[str, SetFigure]:
        reference = self.plan.reference
        if reference is None:
            self._miss(f"memorisation is not looked for: there is no folder {self.plan.data / 'train'}")
            return {}
        real, fake = self._real_clips(), self._fake_clips(source)
        with self.stage("nearest training windows", "clips") as progress:
            return {"memorisation": memorisation(real, fake, reference=reference, total=self.count, progress=progress)}

    def _frechet(self, name: str, real: Features, fake: Features) -> dict[str, SetFigure]:
        settings = self.rules.frechet
        return frechet_figures(name, real, fake, ddof=settings.ddof, folds=settings.folds)

    def _tried(self, name: str, figures: Callable[[], dict[str, SetFigure]]) -> dict[str, SetFigure]:
        """Figures, or none where there are too few clips for them, or too short ones for a codec, which is told."""
        try:
            return figures()
        except ValueError as error:
            self._miss(f"{name} is not computed: {error}")
            return {}

    def _miss(self, what: str) -> None:
        if what not in self.missing:
            self.missing.append(what)

    # ---- the two sets

    def _real(self, network: Network) -> Features:
        assert self.real is not None
        values = self._features("real clips", network, self._real_clips(), total=len(self.real))
        return Features(values, self.real.units)

    def _fake(self, network: Network, source: Source) -> Features:
        units = [unit for unit, _ in self._places() for _ in range(self.samples)]
        values = self._features(source.name, network, self._fake_clips(source), total=len(units))
        return Features(values, units[: len(values)])

    def _features(self, whose: str, network: Network, clips: Iterable[Tensor], *, total: int) -> Tensor:
        with self.stage(f"{whose}, {getattr(network, 'name', network.key)}", "clips") as progress:
            return self.plan.cache.features(network, clips, progress=lambda done: progress(done, total))

    def _real_clips(self) -> Iterator[Tensor]:
        assert self.real is not None
        whole = hashlib.sha256()
        for clip in self.real.clips:
            seen = self._seen(clip.frames, clip.value_range)
            whole.update(seen.contiguous().numpy().tobytes())
            yield seen
        self.digest = whole.hexdigest()

    def _fake_clips(self, source: Source) -> Iterator[Tensor]:
        """Judged clips, in the order of `_places`."""
        clips = repeat(None) if self.judged is None else self.judged.clips
        for (_, name), clip in zip(self._places(), clips):
            made = source.samples(self.case, name, clip, self.samples)
            self.size = tuple(made.video.shape[2:])
            for sample in made.video:
                yield self._seen(sample, made.value_range)

    def _places(self) -> list[tuple[str, str]]:
        """Unit and name of every window to complete; of clips drawn from nothing, which are independent, a number."""
        if self.judged is not None:
            return list(zip(self.judged.units, self.judged.names))
        count = self.rules.drawn or (len(self.real) if self.real is not None else 0)
        return [(str(i), str(i)) for i in range(min(count, self.plan.windows or count))]

    def _seen(self, frames: Tensor | None, value_range: tuple[float, float] | None) -> Tensor:
        """The frames that metrics of sets see, as bytes."""
        assert frames is not None and value_range is not None
        judged = list(self.case.judged) if self.case.judged is not None else list(range(len(frames)))
        return eight_bit(frames[judged], value_range=value_range, how=self.rules.quantise)
