# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is made of before anything is drawn: the protocol, where its clips are, which networks look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framecast.evaluate.feature_cache import FeatureCache
from framecast.evaluate.terms import Case, Cut, Protocol
from framecast.evaluate.windows import Windows, windows
from framecast.experiment import SampleOptions, VideoSpec, to_plain
from framecast.generate import Model
from framecast.metrics.features import FeatureNetwork
from framecast.metrics.lpips import LPIPS

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

    def cut(self, case: Case, how: Cut) -> Windows:
        """Windows of a case, at most as many as asked for."""
        found = windows(self.rules, case, how, self.data, like=self.like)
        return found.first(self.windows) if self.windows else found

    @property
    def reference(self) -> Path | None:
        """Training clips for what looks things up in them, where there are any."""
        folder = self.data / "train"
        return folder if folder.is_dir() and self.rules.split != "train" else None


def sampling(rules: Protocol, model: Model, options: Mapping[str, Any] | None = None) -> SampleOptions:
    """How a model draws under a protocol: its own options, those that the protocol states, then these."""
    known = to_plain(model.system.options)
    stated = {key: value for key, value in rules.sampler.items() if key in known}
    return model.options({**stated, **(options or {})})
