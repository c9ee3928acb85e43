# SPDX-License-Identifier: Apache-2.0
"""Protocols of "Diffusion Probabilistic Modeling for Video Generation" (RVD), its tables 1 and 2, and our versions.

The paper states neither the number of clips nor of samples; the released code draws one sample of each of 50 clips and
has no metrics. Its FVD is far from everybody else's scale, so only the order within a table means something; `-v2` is
what we measure in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from framecast.evaluate.terms import Case, Cut, Protocol, Published

_PAPER = "Yang, Srivastava and Mandt, Diffusion Probabilistic Modeling for Video Generation (Entropy 2023)"
_FIRST, _SHORTER = Case(known=(0, 1, 2, 3), frames=20), Case(known=(0, 1, 2, 3), frames=16)
_METRICS = ("fvd", "lpips", "crps")


@dataclass(frozen=True, kw_only=True)
class _Set:
    """A data set of the paper; the columns of its tables are in this order: KTH, BAIR, Sim, City."""

    key: str
    about: str
    set: str
    split: str
    channels: int
    side: int
    resampling: str = ""
    case: Case
    cut: Cut  # as the code takes it
    assumed: tuple[str, ...] = ()
    is_not: tuple[str, ...] = ()
    split_v2: str
    cut_v2: Cut  # its samples are those of paired windows


_SETS = (
    _Set(
        key="kth",
        about="KTH actions, prediction 4 → 12",
        set="kth",
        split="val",
        channels=1,
        side=64,
        resampling="luma, then both sides to 64 without keeping the shape, bilinear",
        case=_SHORTER,
        cut=Cut(how="from_start", start=12, clips=50),
        assumed=(
            "the validation persons, as the code takes them; the paper says test set",
            "12 drawn frames, as the code and figure A5 have it; the text says 16",
        ),
        split_v2="test",
        cut_v2=Cut(how="from_start", start=12, clips=256, samples=100),
    ),
    _Set(
        key="bair",
        about="BAIR robot pushing, prediction 4 → 16",
        set="bair",
        split="test",
        channels=3,
        side=64,
        case=_FIRST,
        cut=Cut(how="from_start", clips=50),
        assumed=("the first 50 test clips in order of their names; the code takes them in the file system's order",),
        split_v2="test",
        cut_v2=Cut(how="from_start", clips=256, samples=100),
    ),
    _Set(
        key="sim",
        about="flow past a disc, prediction 4 → 16",
        set="simulation128",
        split="test",
        channels=1,
        side=128,
        case=_FIRST,
        cut=Cut(how="every", clips=1, per_clip=50),
        assumed=("windows 0 to 49 of the first test run, which overlap almost wholly",),
        is_not=("a value on the paper's own flows: they were not released, these are made after its description",),
        split_v2="test",
        cut_v2=Cut(how="random", clips=8, per_clip=32, samples=100),
    ),
    _Set(
        key="city",
        about="Cityscapes, prediction 4 → 16",
        set="cityscapes",
        split="val",
        channels=3,
        side=128,
        case=_FIRST,
        cut=Cut(how="from_start", clips=50),
        assumed=("the first 50 validation clips in order of their names",),
        split_v2="val",
        cut_v2=Cut(how="from_start", clips=500, samples=100),
    ),
)

# method: FVD, LPIPS, CRPS of the four sets each
_TABLE_1 = {
    "RVD": (1351, 1272, 20, 997, 0.06, 0.06, 0.01, 0.11, 6.51, 12.86, 0.58, 9.84),
    "IVRNN": (1375, 1337, 24, 1234, 0.08, 0.07, 0.008, 0.18, 6.17, 11.74, 0.65, 11.00),
    "SLAMP": (1451, 1749, 2998, 1853, 0.05, 0.08, 0.30, 0.23, 6.18, 24.8, 2.53, 23.6),
    "SVG-LP": (1783, 1631, 21, 1465, 0.12, 0.08, 0.01, 0.20, 18.24, 13.96, 0.75, 19.34),
    "RetroGAN": (2503, 2038, 28, 1769, 0.28, 0.07, 0.02, 0.20, 27.49, 19.42, 1.60, 20.13),
    "DVD-GAN": (2592, 3097, 147, 2012, 0.18, 0.10, 0.06, 0.21, 12.05, 27.2, 1.42, 21.61),
    "FutureGAN": (4111, 3297, 319, 5692, 0.33, 0.12, 0.16, 0.29, 37.13, 27.97, 6.64, 29.31),
}
_TABLE_2 = {  # given + drawn frames in training
    "VD (2+6)": (1523, 1374, 37, 1321, 0.066, 0.066, 0.014, 0.127, 6.10, 12.75, 0.68, 13.42),
    "SimpleRVD (2+6)": (1532, 1338, 45, 1824, 0.065, 0.063, 0.024, 0.163, 5.80, 12.98, 0.65, 10.78),
    "RVD (2+6)": (1351, 1272, 20, 997, 0.066, 0.060, 0.011, 0.113, 6.51, 12.86, 0.58, 9.84),
    "RVD (2+3)": (1663, 1381, 33, 1074, 0.072, 0.072, 0.018, 0.112, 6.67, 13.93, 0.63, 10.59),
    "IVRNN (4+8)": (1375, 1337, 24, 1234, 0.082, 0.075, 0.008, 0.178, 6.17, 11.74, 0.65, 11.00),
    "IVRNN (4+4)": (2754, 1508, 150, 3145, 0.097, 0.074, 0.040, 0.278, 7.25, 13.64, 1.36, 18.24),
}


def _column(table: Mapping[str, tuple[float, ...]], place: int) -> tuple[Published, ...]:
    """All metrics of one set."""
    return tuple(
        row
        for number, metric in enumerate(_METRICS)
        for row in Published.rows(metric, {method: values[4 * number + place] for method, values in table.items()})
    )


def _as_published(of: _Set, published: tuple[Published, ...]) -> Protocol:
    return Protocol(
        name=f"rvd-{of.key}",
        about=of.about,
        set=of.set,
        split=of.split,
        channels=of.channels,
        height=of.side,
        width=of.side,
        resampling=of.resampling,
        task="forecast",
        cases=(of.case,),
        paired=of.cut,
        sets=of.cut,
        metrics=_METRICS,
        sampler={"sampler": "ddpm", "steps": 1600},
        published=published,
        assumed=(
            "50 windows and one sample of each, as the released code draws them; the paper states neither",
            "FVD of TF-Hub's I3D over all frames, the given ones included; the paper does not say which features",
            "LPIPS with AlexNet, v0.1, over the drawn frames",
            "CRPS per channel in 8-bit levels, mean over channels, pixels, drawn frames and clips",
            *of.assumed,
        ),
        is_not=(
            "an FVD of any other paper: the authors' values are far from everybody's scale, only their order counts",
            "a CRPS of many samples: of one sample it is the absolute error",
            *of.is_not,
        ),
        source=f"{_PAPER}, table 1",
    )


def _version_2(of: _Set, first: Protocol) -> Protocol:
    return replace(
        first,
        name=f"rvd-{of.key}-v2",
        about=f"{of.about}: more clips, 100 samples",
        split=of.split_v2,
        paired=of.cut_v2,
        sets=replace(of.cut_v2, samples=1),
        metrics=(*_METRICS, "psnr", "ssim", "ensemble", "drift"),
        weights={"fvd": "TF-Hub i3d-kinetics-400", "lpips": "AlexNet, v0.1"},
        published=(),
        assumed=(),
        is_not=("a value of the RVD paper, whose numbers of clips and samples are not known", *of.is_not),
        source="framecast's version of the RVD paper's protocol, with all numbers stated",
    )


def _protocols() -> tuple[Protocol, ...]:
    main = [_as_published(of, _column(_TABLE_1, place)) for place, of in enumerate(_SETS)]
    ablation = [
        replace(
            first,
            name=f"rvd-ablation-{of.key}",
            about=f"{of.about}: what the parts of RVD are worth",
            published=_column(_TABLE_2, place),
            source=f"{_PAPER}, table 2",
        )
        for place, (of, first) in enumerate(zip(_SETS, main))
    ]
    return (*main, *(_version_2(of, first) for of, first in zip(_SETS, main)), *ablation)


RVD = _protocols()
