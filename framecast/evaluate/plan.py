# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is made of before anything is drawn: the protocol, where its clips are, which networks look."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framecast.data.array_file import generated_by
from framecast.data.simulate.sets import SETS, BouncingSet, VortexSet
from framecast.evaluate.feature_cache import FeatureCache
from framecast.evaluate.terms import Case, Cut, Protocol
from framecast.evaluate.windows import Windows, windows
from framecast.experiment import SampleOptions, VideoSpec, to_plain
from framecast.generate import Model
from framecast.metrics.features import FeatureNetwork
from framecast.nn.perceptual import LPIPS
from framecast.task import UnsupportedTask

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # done, in all
Stage = Callable[[str, str], AbstractContextManager[Progress]]  # what is done, what is counted


@contextmanager
def silent(label: str, unit: str) -> Iterator[Progress]:
    """A stage that nobody watches."""
    yield lambda done, total: None


@dataclass(frozen=True)
class Networks:
    """Networks whose weights the user has given; figures of the others are left out, and that is told."""

    i3d: FeatureNetwork | None = None
    c3d: FeatureNetwork | None = None
    lpips: LPIPS | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is judged, and how."""

    rules: Protocol
    data: Path  # folder of the protocol's set
    like: VideoSpec | None = None  # what the clips are fitted to; None: the protocol's own size
    windows: int | None = None  # the first so many only
    samples: int | None = None  # of each window, instead of the protocol's; in sets at most the protocol's
    networks: Networks = field(default_factory=Networks)
    cache: FeatureCache = field(default_factory=FeatureCache)
    shown: Path | None = None  # folder for samples to look at; None: none are kept
    _cuts: dict[tuple[Case, Cut], Windows] = field(default_factory=dict, repr=False, compare=False)

    def cut(self, case: Case, how: Cut) -> Windows:
        """Windows of a case, at most as many as asked for.

        Raises:
            ValueError: a set that is not there, is another one, or has no window.
        """
        if (case, how) not in self._cuts:
            found = windows(self.rules, case, how, self.data, like=self.like)
            total = len(found)
            found = found.first(self.windows) if self.windows else found
            if len(found) < total and (how.windows is None or how.or_fewer):
                told = f"the first {len(found)} of {total} windows only"
                found = dataclasses.replace(found, deviations=(*found.deviations, told))
            self._cuts[case, how] = found
        return self._cuts[case, how]

    def read(self, stage: Stage) -> None:
        """Read every window once, so that those that cannot be read are left out before anything is drawn.

        Files of open sets are whole or not there.
        """
        rules = self.rules
        for case in rules.cases if not self.open else ():
            for how in dict.fromkeys(cut for cut in (rules.paired, rules.sets, rules.real) if cut is not None):
                if rules.task != "generate" or how is (rules.real or rules.sets):
                    with stage(f"reading {rules.set}", "windows") as progress:
                        self._cuts[case, how] = self.cut(case, how).readable(progress)

    @property
    def open(self) -> bool:
        """Whether the set is one that this library makes, whose files say what they are."""
        return self.rules.set in SETS

    @property
    def reference(self) -> Path | None:
        """Training clips for what looks things up in them, where there are any."""
        folder = self.data / "train"
        return folder if folder.is_dir() and self.rules.split != "train" else None

    def reference_lacks(self) -> str | None:
        """In what the training clips of an open set are not as they must be, in words."""
        kind = SETS.get(self.rules.set)
        if not isinstance(kind, (VortexSet, BouncingSet)):
            return None
        wanted = kind.counts["train"]
        if self.reference is None:
            return f"nothing is looked up in training clips: there is no folder {self.data / 'train'}"
        found = [generated_by(path) for path in sorted(self.reference.glob("*.npz"))]
        meant = (self.rules.set, "train", self.rules.seed)
        right = sum((told.get("set"), told.get("split"), told.get("seed")) == meant for told in found)
        if right == wanted == len(found):
            return None
        others = len(found) - right
        return f"{right} of the {wanted} training clips of {self.rules.set} to look things up in, {others} of another"


def sampling(plan: Plan, model: Model, options: Mapping[str, Any] | None = None) -> SampleOptions:
    """How a model draws under a protocol: its own options, those that the protocol states, then these.

    What looks things up in training clips does so in those of the set, unless told otherwise.

    A model that cannot draw as the protocol states (more steps than it has noise levels) draws as it does otherwise;
    the result tells in what that differs.
    """
    rules, known = plan.rules, to_plain(model.system.options)
    if known.get("reference") == "" and plan.reference is not None:
        options = {"reference": str(plan.reference), **(options or {})}
    stated = {key: value for key, value in rules.sampler.items() if key in known}
    chosen = model.options({**stated, **(options or {})})
    for case in rules.cases if stated and rules.task != "reconstruct" else ():
        try:
            model.system.plan([i in case.known for i in range(case.frames)], chosen)
        except UnsupportedTask:
            continue  # it cannot at all, which is said when it is asked
        except ValueError as error:
            own = model.options(dict(options or {}))
            model.system.plan([i in case.known for i in range(case.frames)], own)
            _log.warning("%s cannot draw as %s states: %s", model.name, rules.name, error)
            return own
    return chosen
