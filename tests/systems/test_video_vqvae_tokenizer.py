"""Video VQ-VAE's tokenizer: sizes, which frames reach which codes, what a missing or masked level means."""

from dataclasses import replace

import pytest
import torch

from framecast.draws import draws
from framecast.systems.video_vqvae.config import TokenizerConfig, TokenizerStageConfig
from framecast.systems.video_vqvae.stages import TokenizerStage
from framecast.systems.video_vqvae.tokenizer import Tokenizer

SMALL = TokenizerConfig(hidden=12, residual=6, codes=32, code_width=6)
PADDINGS = ["same", "causal"]


def build(*, size=(16, 16), frames=16, channels=3, **changes):
    """Codebooks are where their vectors are, so that many codes are chosen."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(replace(SMALL, **changes), channels=channels, size=size, frames=frames)
    settings = TokenizerStageConfig(variance=1.0)
    tokenizer.start(clips(4, frames, channels, *size, seed=9), torch.Generator().manual_seed(0), settings)
    return tokenizer.eval()


def clips(*shape, seed=0):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def causal_frames(level, step):
    return set(range(4 * (step if level == "top" else step // 2) + 4))


@torch.no_grad()
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("frames, size", [(16, (16, 24)), (4, (8, 16))])
def test_codes_and_clips_have_their_sizes(padding, frames, size):
    tokenizer = build(size=size, frames=frames, channels=1, temporal_padding=padding)
    codes = tokenizer.encode(clips(2, frames, 1, *size))
    height, width = size
    assert codes["top"].shape == (2, frames // 4, height // 8, width // 8)
    assert codes["bottom"].shape == (2, frames // 2, height // 4, width // 4)
    assert {level: tuple(codes[level].shape[1:]) for level in codes} == {lv: tokenizer.grid(lv) for lv in codes}
    assert all(c.unique().numel() > 1 and c.dtype == torch.int64 for c in codes.values())
    assert tokenizer.decode(codes).shape == (2, frames, 1, *size)


def test_published_sizes_and_parameters():
    with torch.device("meta"):
        tokenizer = Tokenizer(TokenizerConfig(), channels=3, size=(256, 256), frames=16)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in tokenizer.named_children()}
    assert counts == {
        "bottom_encoder": 770_624,
        "top_encoder": 1_720_896,
        "top_in": 8_256,
        "top_decoder": 975_360,
        "bottom_in": 12_352,
        "top_up": 262_208,
        "decoder": 770_499,
        "top": 0,
        "bottom": 0,
    }
    assert sum(counts.values()) == 4_520_195
    assert (tokenizer.grid("top"), tokenizer.grid("bottom")) == ((4, 32, 32), (8, 64, 64))
    assert (tokenizer.grid("top", 4), tokenizer.grid("bottom", 4)) == ((1, 32, 32), (2, 64, 64))


@torch.no_grad()
@pytest.mark.parametrize("kernel, grid", [((4, 4, 4), (8, 8, 12)), ((8, 8, 4), (4, 4, 12)), ((4, 12, 8), (8, 4, 6))])
def test_other_first_kernels_keep_sizes_exact(kernel, grid):
    size = (grid[1] * kernel[1] // 2, grid[2] * kernel[2] // 2)
    tokenizer = build(first_kernel=kernel, size=size)
    clip = clips(1, 16, 3, *size)
    codes = tokenizer.encode(clip)
    assert tuple(codes["bottom"].shape[1:]) == grid == tokenizer.grid("bottom")
    assert tokenizer.decode(codes).shape == clip.shape


@torch.no_grad()
def test_codes_decode_to_what_their_vectors_do():
    tokenizer, clip = build(), clips(2, 16, 3, 16, 16)
    found = tokenizer.quantised(clip)
    decoded = tokenizer.decoded({level: one.values for level, one in found.items()})
    assert torch.equal(tokenizer.decode(tokenizer.encode(clip)), decoded.clamp(-1, 1))


@pytest.mark.parametrize("padding", PADDINGS)
def test_frames_reach_exactly_the_stated_steps(padding):
    tokenizer = build(size=(8, 8), temporal_padding=padding).double()
    clip = clips(1, 16, 3, 8, 8).double().requires_grad_()
    for level, found in tokenizer.quantised(clip).items():
        for step in range(found.vectors.shape[2]):
            (slope,) = torch.autograd.grad(found.vectors[:, :, step].square().sum(), clip, retain_graph=True)
            reached = set(slope.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist())
            assert reached == (set(range(16)) if padding == "same" else causal_frames(level, step)), (level, step)


def test_causal_frames_are_decoded_from_steps_up_to_their_own():
    tokenizer = build(size=(8, 8), temporal_padding="causal").double()
    codes = tokenizer.encode(clips(1, 16, 3, 8, 8).double())
    latents = {level: tokenizer.quantiser(level).lookup(codes[level]).requires_grad_() for level in codes}
    made = tokenizer.decoded(latents)
    for frame in range(16):
        slopes = torch.autograd.grad(made[:, frame].square().sum(), list(latents.values()), retain_graph=True)
        for level, slope in zip(latents, slopes):
            reached = slope.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()
            assert max(reached) == frame // (4 if level == "top" else 2), (level, frame)


@torch.no_grad()
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("told", [True, False])
def test_first_frames_alone_have_the_codes_they_have_in_the_clip_if_causal(padding, told):
    tokenizer, clip = build(temporal_padding=padding, bottom_conditioned_on_top=told), clips(4, 16, 3, 16, 16)
    whole, alone = tokenizer.encode(clip), tokenizer.encode(clip[:, :4])
    equal = [torch.equal(alone[level], whole[level][:, : alone[level].shape[1]]) for level in ("top", "bottom")]
    assert equal == 2 * [padding == "causal"]


@torch.no_grad()
@pytest.mark.parametrize("missing, other", [("top", "bottom"), ("bottom", "top")])
def test_a_missing_level_counts_as_zeros(missing, other):
    tokenizer = build()
    codes = tokenizer.encode(clips(1, 16, 3, 16, 16))
    vectors = {level: tokenizer.quantiser(level).lookup(codes[level]) for level in codes}
    decoded = tokenizer.decoded({**vectors, missing: torch.zeros_like(vectors[missing])})
    assert torch.equal(tokenizer.decode({other: codes[other]}), decoded.clamp(-1, 1))


def trained(tokenizer, clip, **changes):
    stage = TokenizerStage(tokenizer.train(), TokenizerStageConfig(clip_frames=16, variance=1.0, **changes))
    return stage.loss({"clip": clip}, step=0, turn="tokenizer", rng=draws(0, range(len(clip))))


@pytest.mark.parametrize("unit", ["clip", "step", "place"])
def test_a_bottom_level_that_is_always_masked_changes_no_pixel(unit):
    tokenizer, clip = build(), clips(1, 16, 3, 16, 16)
    loss = trained(tokenizer, clip, bottom_mask=1.0, mask_unit=unit)
    assert torch.equal(loss.terms["error"], loss.terms["error_top_only"])
    loss.total.backward()
    # the bottom level still follows its codes, and is counted
    assert tokenizer.bottom_in.weight.grad.abs().sum() > 0 and tokenizer.bottom.update(decay=0.9, eps=1e-5)["used"] > 1


@pytest.mark.parametrize("share, evaluated", [(0.0, False), (1.0, True)])
def test_a_bottom_level_that_is_not_masked_decodes_as_in_evaluation(share, evaluated):
    tokenizer, clip = build(), clips(2, 16, 3, 16, 16)
    with torch.no_grad():
        values = {level: one.values for level, one in tokenizer.quantised(clip).items()}
        expected = ((tokenizer.decoded(values) - clip) / 2).square().mean()
    stage = TokenizerStage(tokenizer.train(not evaluated), TokenizerStageConfig(variance=1.0, bottom_mask=share))
    loss = stage.loss({"clip": clip}, step=0, turn="tokenizer", rng=draws(0, range(2)))
    torch.testing.assert_close(loss.terms["error"], expected)
    assert loss.terms["error_top_only"] != loss.terms["error"]


def test_masking_hides_the_stated_share_in_the_stated_unit():
    tokenizer, like = build(), torch.ones(64, 6, 8, 4, 4)
    for unit, shape in (("clip", (64, 1, 1, 1, 1)), ("step", (64, 1, 8, 1, 1)), ("place", (64, 1, 8, 4, 4))):
        stage = TokenizerStage(tokenizer, TokenizerStageConfig(bottom_mask=0.25, mask_unit=unit))
        shown = stage._mask(like, draws(0, range(64)))
        assert shown.shape == shape and set(shown.unique().tolist()) == {0.0, 1.0}
        assert shown.mean().item() == pytest.approx(0.75, abs=0.12 if unit == "clip" else 0.05)


@torch.no_grad()
def test_one_level_has_bottom_codes_alone():
    tokenizer, clip = build(levels=1, size=(12, 20), frames=6), clips(2, 6, 3, 12, 20)
    codes = tokenizer.encode(clip)
    assert tokenizer.levels == ("bottom",) == tuple(codes) and codes["bottom"].shape == (2, 3, 3, 5)
    assert tokenizer.decode(codes).shape == clip.shape
    assert tokenizer.encode(clip[:, :2])["bottom"].shape[1] == 1


def test_recomputing_features_changes_neither_gradients_nor_counts():
    clip, found = clips(2, 16, 3, 16, 16), []
    for again in (False, True):
        tokenizer = build()
        trained(tokenizer, clip, checkpointing=again).total.backward()
        hits = [tokenizer.quantiser(level)._hits for level in tokenizer.levels]
        assert [int(h.sum()) for h in hits] == [2 * 4 * 2 * 2, 2 * 8 * 4 * 4]
        found.append([p.grad for p in tokenizer.parameters()] + hits)
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.slow
def test_one_clip_is_learnt_and_its_top_says_more_than_its_mean():
    tokenizer, x = build(), torch.linspace(0, 3, 16)
    wave = torch.sin(x[:, None, None, None] + x[None, None, :, None] + 0.5 * x[None, None, None, :])
    clip = wave[None].expand(1, 16, 3, 16, 16).contiguous()
    settings = TokenizerStageConfig(bottom_mask=0.25)
    stage = TokenizerStage(tokenizer.train(), settings)
    stage.start(clip, draws(0, [0]))
    optimiser, errors = torch.optim.Adam(tokenizer.parameters(), 2e-3), []
    for step in range(300):
        loss = stage.loss({"clip": clip}, step=step, turn="tokenizer", rng=draws(step, [0]))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        stage.after_step(step, draws(step, [0]))
        errors.append(loss.terms["error"].item())
    loss = TokenizerStage(tokenizer.eval(), settings).loss({"clip": clip}, step=0, turn="tokenizer", rng=draws(0, [0]))
    assert loss.terms["error"] < errors[0] / 20
    still = clip.mean(1, keepdim=True)  # the mean image
    assert loss.terms["error_top_only"] < ((clip - still) / 2).square().mean() / tokenizer.variance


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"frames": 6}, "clip_frames is 6; .* multiple of 4"),
        ({"size": (12, 16)}, "height is 12; .* multiple of 8"),
        ({"size": (16, 20)}, "width is 20; .* multiple of 8"),
        ({"first_kernel": (2, 8, 8)}, "multiples of 4"),
        ({"first_kernel": (4, 8, 6)}, "multiples of 4"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_sizes_that_no_tokenizer_has_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        build(**changes)


@pytest.mark.parametrize("shape", [(1, 6, 3, 16, 16), (1, 16, 1, 16, 16), (1, 16, 3, 16, 24)])
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"a multiple of 4 frames of 3 × 16 × 16"):
        build().encode(torch.zeros(shape))
