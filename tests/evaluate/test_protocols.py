"""Protocols as data: every record is well formed, and says what the papers' tables say."""

import json
import math
from dataclasses import asdict

import pytest

from framecast.data.simulate.sets import SETS
from framecast.evaluate.protocols import METRIC_GROUPS, PROTOCOLS, Case, Cut, Published, protocol
from framecast.experiment import to_plain
from framecast.systems.ramvid.published import bair64, kinetics64, ucf64

IDS = [
    "ramvid-bair-pred", "ramvid-bair-pred-100", "ramvid-bair-infill", "ramvid-k600-pred",
    "ramvid-k600-infill-ends", "ramvid-k600-upsample", "ramvid-ucf-uncond", "rvd-kth", "rvd-bair", "rvd-sim",
    "rvd-city", "rvd-kth-v2", "rvd-bair-v2", "rvd-sim-v2", "rvd-city-v2", "rvd-ablation-kth",
    "rvd-ablation-bair", "rvd-ablation-sim", "rvd-ablation-city", "pvdm-fvd16-ucf", "pvdm-fvd16-sky",
    "pvdm-fvd128-ucf", "pvdm-fvd128-sky", "pvdm-is-ucf", "pvdm-recon-ucf-train", "pvdm-recon-ucf-test",
    "pvdm-recon-sky-train", "pvdm-recon-sky-test", "pvdm-efficiency", "vqvae-k600-fvd-64", "vqvae-k600-fvd-256",
    "vqvae-k600-human", "smoke-lbm", "smoke-lbm-16", "smoke-lbm-100", "smoke-lbm-200", "smoke-bounce", "infill-lbm",
    "generate-lbm",
]  # fmt: skip
OPEN = [name for name in IDS if "lbm" in name or "bounce" in name]
FVD = {"fvd", "r-fvd", "fvd*"}

# protocol, metric, method, value, spread: one or more of every table of the papers
TABLES = [
    ("ramvid-bair-pred", "fvd", "RaMViD p_U=0.25", 84.20, None),
    ("ramvid-bair-pred", "fvd", "RaMViD p_U=0.75", 86.05, None),
    ("ramvid-bair-pred", "fvd", "SAVP", 116.4, None),
    ("ramvid-bair-pred-100", "fvd", "MCVD", 89.5, None),
    ("ramvid-bair-infill", "fvd", "RaMViD p_U=0", 85.68, None),
    ("ramvid-k600-pred", "fvd", "Video Transformer", 170, 5),
    ("ramvid-k600-pred", "fvd", "RaMViD p_U=0.5", 17.61, None),
    ("ramvid-k600-infill-ends", "fvd", "RaMViD p_U=0", 10.68, None),
    ("ramvid-k600-upsample", "fvd", "RaMViD p_U=0.25", 4.91, None),
    ("ramvid-ucf-uncond", "is", "RaMViD p_U=0.75", 21.71, 0.21),
    ("ramvid-ucf-uncond", "is", "MoCoGAN", 12.42, 0.03),
    ("rvd-kth", "fvd", "RVD", 1351, None),
    ("rvd-kth", "lpips", "SLAMP", 0.05, None),
    ("rvd-bair", "crps", "IVRNN", 11.74, None),
    ("rvd-sim", "lpips", "IVRNN", 0.008, None),
    ("rvd-sim", "crps", "RVD", 0.58, None),
    ("rvd-city", "fvd", "FutureGAN", 5692, None),
    ("rvd-city", "crps", "DVD-GAN", 21.61, None),
    ("rvd-ablation-kth", "crps", "SimpleRVD (2+6)", 5.80, None),
    ("rvd-ablation-bair", "lpips", "RVD (2+3)", 0.072, None),
    ("rvd-ablation-sim", "fvd", "VD (2+6)", 37, None),
    ("rvd-ablation-city", "crps", "IVRNN (4+4)", 18.24, None),
    ("pvdm-fvd16-ucf", "fvd", "PVDM-L 400/400-s", 343.6, None),
    ("pvdm-fvd16-sky", "fvd", "PVDM-L 400/400-s", 55.41, None),
    ("pvdm-fvd128-ucf", "fvd", "PVDM-L 200/200-s", 639.7, None),
    ("pvdm-fvd128-sky", "fvd", "StyleGAN-V", 197.0, None),
    ("pvdm-fvd128-sky", "fvd", "VideoGPT", None, None),
    ("pvdm-is-ucf", "is", "PVDM-L", 74.40, 1.25),
    ("pvdm-is-ucf", "is", "MoCoGAN", 12.42, 0.07),
    ("pvdm-recon-ucf-train", "r-fvd", "PVDM", 25.87, None),
    ("pvdm-recon-ucf-test", "psnr_clip", "PVDM", 26.99, None),
    ("pvdm-recon-sky-train", "psnr_clip", "PVDM", 34.33, None),
    ("pvdm-recon-sky-test", "r-fvd", "PVDM", 36.52, None),
    ("pvdm-efficiency", "seconds, 128 frames", "TATS", 434, None),
    ("pvdm-efficiency", "GB, 16 frames", "PVDM-S 100/20-s", 4.33, None),
    ("pvdm-efficiency", "training batch", "PVDM-S 100/20-s", 7, None),
    ("vqvae-k600-fvd-64", "fvd", "Video VQ-VAE", 64.30, 2.04),
    ("vqvae-k600-fvd-64", "fvd*", "Video VQ-VAE", 54.30, 3.49),
    ("vqvae-k600-fvd-64", "fvd", "DVD-GAN-FP", 69.15, 1.16),
    ("vqvae-k600-fvd-256", "fvd*", "Video VQ-VAE", 82.45, 1.16),
    ("vqvae-k600-human", "% of judgements", "indifferent", 21.5, None),
]


def test_every_row_has_its_protocol_and_no_other_is_there():
    assert sorted(PROTOCOLS) == sorted(IDS)
    assert all(PROTOCOLS[name].name == name for name in IDS)


@pytest.mark.parametrize(("name", "metric", "method", "value", "spread"), TABLES)
def test_published_value_is_the_tables(name, metric, method, value, spread):
    (row,) = [row for row in PROTOCOLS[name].published if (row.metric, row.method) == (metric, method)]
    assert (row.value, row.spread) == (value, spread)


def test_spot_checks_reach_every_protocol_with_published_values():
    assert {name for name, *_ in TABLES} == {name for name in IDS if PROTOCOLS[name].published}


@pytest.mark.parametrize(
    ("name", "metric", "mean"),  # of the system's own columns, summed by hand from the tables
    [
        ("rvd-kth", "fvd", (1351 + 1375 + 1451 + 1783 + 2503 + 2592 + 4111) / 7),
        ("rvd-city", "lpips", (0.11 + 0.18 + 0.23 + 0.20 + 0.20 + 0.21 + 0.29) / 7),
        ("rvd-ablation-sim", "crps", (0.68 + 0.65 + 0.58 + 0.63 + 0.65 + 1.36) / 6),
        ("pvdm-fvd16-sky", "fvd", (222.7 + 206.6 + 85.88 + 164.1 + 83.11 + 79.52 + 71.46 + 61.70 + 55.41) / 9),
        ("ramvid-k600-infill-ends", "fvd", (10.68 + 10.85 + 10.86 + 17.33) / 4),
    ],
)
def test_whole_columns_are_the_tables(name, metric, mean):
    values = [row.value for row in PROTOCOLS[name].published if row.metric == metric]
    assert math.isclose(sum(values) / len(values), mean)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75])
def test_published_values_agree_with_those_beside_the_presets(rate):
    quoted = bair64(rate).published | kinetics64(rate).published | (ucf64(rate).published if rate >= 0.5 else {})
    assert len(quoted) == (6 if rate >= 0.5 else 5)
    for name, told in quoted.items():
        (row,) = [row for row in PROTOCOLS[name].published if row.method == f"RaMViD p_U={rate:g}"]
        numbers = [float(word) for word in told.replace("+-", " ").split()[1:]]
        assert numbers == [number for number in (row.value, row.spread) if number is not None]


@pytest.mark.parametrize("name", IDS)
def test_record_is_well_formed(name):
    rules = PROTOCOLS[name]
    assert rules.source and rules.about and rules.set and rules.split
    assert set(rules.metrics) <= set(METRIC_GROUPS) and len(set(rules.metrics)) == len(rules.metrics)
    assert all(sentence and not sentence.endswith(".") for sentence in (*rules.assumed, *rules.is_not))
    assert rules.is_not, "every protocol says what it is not"
    for case in rules.cases:
        assert set(case.known) < set(range(case.frames)) and list(case.known) == sorted(set(case.known))
        assert case.judged is None or set(case.judged) <= set(range(case.frames))
        if FVD & set(rules.metrics):
            assert len(case.judged or range(case.frames)) >= 9, "I3D takes 9 frames or more"
    assert len({case.name for case in rules.cases}) == len({case.slug for case in rules.cases}) == len(rules.cases)
    for row in rules.published:
        assert row.metric in rules.metrics or rules.task == "record"
    assert len({(row.metric, row.method) for row in rules.published}) == len(rules.published)
    if rules.published:
        assert rules.source.split(",")[0] != "framecast's open sets"


@pytest.mark.parametrize("name", IDS)
def test_task_has_what_it_needs(name):
    rules = PROTOCOLS[name]
    if rules.task == "record":
        assert rules.published and not rules.cases and not rules.metrics
        return
    assert rules.cases and rules.metrics
    assert {bool(case.known) for case in rules.cases} == {rules.task == "forecast"}
    of_frames = {"crps", "psnr", "psnr_clip", "ssim", "lpips", "best_of", "ensemble", "modes", "drift"}
    assert bool(of_frames & set(rules.metrics)) == (rules.paired is not None)
    assert bool((FVD | {"rf3d", "memorisation", "field"}) & set(rules.metrics)) == (rules.sets is not None)
    assert ("is" in rules.metrics) == (rules.inception is not None)
    if rules.task == "generate":
        assert rules.drawn is not None
    if rules.inception is not None:
        assert rules.inception.samples % rules.inception.splits == 0
    if {"best_of", "ensemble", "modes"} & set(rules.metrics):
        assert rules.paired.samples > 1
    if "modes" in rules.metrics:
        assert rules.futures > 0


@pytest.mark.parametrize("name", IDS)
def test_record_turns_into_json_whole(name):
    plain = json.loads(json.dumps(to_plain(asdict(PROTOCOLS[name]))))
    assert plain["name"] == name and len(plain["cases"]) == len(PROTOCOLS[name].cases)
    assert plain["frechet"]["ddof"] in (0, 1)


@pytest.mark.parametrize("name", OPEN)
def test_open_protocol_fits_its_set(name):
    rules = PROTOCOLS[name]
    kind = SETS[rules.set]
    assert kind.size == rules.height == rules.width
    for cut in filter(None, (rules.paired, rules.sets, rules.real)):
        assert cut.clips <= kind.counts[rules.split]
        longest = max(case.frames for case in rules.cases)
        last = round((cut.per_clip - 1) * 12 / 4) if cut.how == "phases" else 0  # periods are up to 12 frames
        assert last + longest <= (204 if name == "smoke-lbm-200" else kind.frames)  # it says so itself
    assert not rules.published


def test_numbers_of_the_open_protocols_are_those_of_the_design():
    smoke, bounce = PROTOCOLS["smoke-lbm"], PROTOCOLS["smoke-bounce"]
    assert (smoke.paired.windows, smoke.paired.samples, smoke.sets.windows) == (128, 8, 512)
    assert PROTOCOLS["smoke-lbm-100"].paired.samples == 100
    assert PROTOCOLS["smoke-lbm-16"].cases[0].name == "16 → 16"
    assert {"rf3d", "rf3d*"} <= set(smoke.metrics) & set(PROTOCOLS["smoke-lbm-16"].metrics)
    assert (bounce.paired.windows, bounce.paired.samples, bounce.futures) == (256, 10, 100)
    assert [case.known for case in PROTOCOLS["infill-lbm"].cases] == [(0, 15), (0, 1, 14, 15), (0, 5, 10, 15)]
    generate = PROTOCOLS["generate-lbm"]
    assert ([case.name for case in generate.cases], generate.drawn) == (["0 → 16", "0 → 128"], 512)


def test_settings_of_the_papers_are_stated():
    assert PROTOCOLS["ramvid-bair-infill"].cases[0].judged == tuple(range(1, 15))
    assert PROTOCOLS["ramvid-bair-pred-100"].drawn == 25_600
    assert PROTOCOLS["ramvid-k600-pred"].sampler == {"sampler": "ddpm", "steps": 1000}
    kth = PROTOCOLS["rvd-kth"]
    assert (kth.split, kth.paired.start, kth.cases[0].frames, kth.channels, kth.sampler["steps"]) == (
        "val", 12, 16, 1, 1600,
    )  # fmt: skip
    assert PROTOCOLS["rvd-kth-v2"].split == "test"
    assert PROTOCOLS["rvd-sim"].paired.how == "every"
    long = PROTOCOLS["pvdm-fvd128-sky"]
    assert (long.cases[0].frames, long.drawn, long.real.clips, long.real.or_fewer) == (128, 2048, 2048, True)
    assert (long.sampler["steps"], long.sampler["eta"], long.frechet.resize) == (400, 1.0, "short_side")
    assert PROTOCOLS["pvdm-recon-sky-test"].sets.clips == 196
    assert (PROTOCOLS["pvdm-is-ucf"].drawn, PROTOCOLS["ramvid-ucf-uncond"].drawn) == (10_000, 20_480)
    assert PROTOCOLS["vqvae-k600-fvd-64"].sampler == PROTOCOLS["vqvae-k600-fvd-256"].sampler == {"given": "model"}
    assert (PROTOCOLS["vqvae-k600-fvd-256"].frechet.folds, PROTOCOLS["vqvae-k600-fvd-64"].sets.clips) == (2, 39_000)


def test_truncation_is_stated_where_the_papers_code_truncates():
    truncated = {name.split("-")[0] for name in IDS if PROTOCOLS[name].quantise == "truncate"}
    assert truncated == {"ramvid", "pvdm"}


def test_case_is_named_by_what_is_known():
    assert Case(known=(0, 1, 2, 3), frames=16).name == "4 → 12"
    assert Case(known=(), frames=16).name == "0 → 16"
    ends = Case(known=(0, 15), frames=16)
    assert (ends.name, ends.slug, ends.unknown) == ("known 0, 15 of 16", "known-0-15-of-16", tuple(range(1, 15)))


def test_cut_counts_its_windows_where_the_number_of_clips_is_stated():
    assert Cut(how="random", clips=10, per_clip=3).windows == 30
    assert Cut(how="random", clips=None, per_clip=3).windows is None


def test_rows_read_spreads_and_notes():
    rows = Published.rows("is", {"a": 1.5, "b": (2, 0.5), "c": (None, "not applicable")})
    assert [(row.value, row.spread, row.note) for row in rows] == [
        (1.5, None, ""), (2, 0.5, ""), (None, None, "not applicable"),
    ]  # fmt: skip


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ValueError, match=r"no protocol 'smoke-lmb'\. Did you mean smoke-lbm\?"):
        protocol("smoke-lmb")
    assert protocol("rvd-kth").name == "rvd-kth"
