"""Video VQ-VAE's codebooks: which code, closed forms, what counts and when, restarts, processes, what is resumed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framecast.draws import draws
from framecast.systems.video_vqvae.quantiser import Quantiser, smoothed

ROOT = Path(__file__).parents[2]
RULE = {"decay": 0.9, "eps": 1e-5}


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(codes=6, width=4, dtype=torch.float32):
    quantiser = Quantiser(codes=codes, width=width).to(dtype)
    quantiser.fill(vectors(codes, width, seed=1))
    return quantiser


def state(quantiser):
    return {name: value.clone() for name, value in quantiser.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_nearest_code_is_chosen_along_the_channels():
    quantiser, z = build(), vectors(2, 4, 3, 5, 7)
    made = quantiser(z)
    gaps = (z.movedim(1, -1)[..., None, :] - quantiser.codebook).square().sum(-1)
    assert torch.equal(made.codes, gaps.argmin(-1))
    assert torch.equal(made.values, quantiser.lookup(made.codes))  # to the last bit
    torch.testing.assert_close(made.commitment().sum(1), gaps.amin(-1))


@pytest.mark.parametrize("codes", [3, 40, 512])
def test_of_equal_codes_the_first_is_chosen(codes):
    quantiser = Quantiser(codes=2 * codes, width=5)
    book = vectors(codes, 5, seed=2)
    quantiser.fill(book.repeat(2, 1))
    assert torch.equal(quantiser.nearest(book), torch.arange(codes))


def test_half_precision_around_it_changes_no_choice():
    quantiser, z = build(codes=64, width=16), vectors(1, 16, 4, 8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = quantiser(z)
    assert torch.equal(made.codes, quantiser(z.float()).codes)
    assert made.values.dtype == torch.bfloat16 and made.commitment().dtype == torch.float32


def test_gradients_pass_to_the_vectors_as_if_nothing_had_happened():
    quantiser, z = build(), vectors(2, 4, 1, 2, 3).requires_grad_()
    made = quantiser(z)
    upstream = vectors(*z.shape, seed=5)
    (made.values * upstream).sum().backward(retain_graph=True)
    assert torch.equal(z.grad, upstream)
    z.grad = None
    made.commitment().sum().backward()
    torch.testing.assert_close(z.grad, 2 * (z - quantiser.lookup(made.codes)).detach())


@pytest.mark.parametrize("steps", [1, 7])
def test_a_constant_input_moves_its_code_as_the_closed_form_says(steps):
    quantiser, decay, n = build(dtype=torch.float64), 0.95, 6
    before = quantiser.codebook.clone()
    x = before[2] + 0.01
    for _ in range(steps):
        made = quantiser(x[None, :, None, None, None].expand(1, 4, 1, 2, 3))
        assert (made.codes == 2).all()
        quantiser.update(decay=decay, eps=0.0)
    share = decay**steps
    expected = (share * before[2] + (1 - share) * n * x) / (share + (1 - share) * n)
    torch.testing.assert_close(quantiser.codebook[2], expected, rtol=1e-12, atol=0)
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(quantiser.codebook[others], before[others], rtol=1e-12, atol=0)


def test_codes_that_are_never_chosen_stay_finite():
    quantiser = build()
    z = quantiser.codebook[0][None, :, None, None, None].expand(1, 4, 1, 2, 2).clone()
    for _ in range(300):
        quantiser(z)
        quantiser.update(decay=0.5, eps=1e-5)  # 2^-300 is 0 in float32
    assert quantiser.counts[1:].max() == 0 and quantiser.codebook.isfinite().all()
    assert (quantiser(z).codes == 0).all()


def test_smoothing_keeps_the_sum():
    counts = torch.tensor([0.0, 3.0, 5.0], dtype=torch.float64)
    assert smoothed(counts, 0.5).sum().item() == pytest.approx(8.0)
    assert smoothed(counts, 0.5)[0].item() == pytest.approx(0.5 / 9.5 * 8)


def test_a_step_uses_the_codebook_as_it_was_before_it():
    quantiser, z = build(), vectors(1, 4, 2, 3, 3)
    before = state(quantiser)
    made = quantiser(z)
    assert same(state(quantiser), before)
    quantiser.update(**RULE)
    assert torch.equal(made.values, before["codebook"][made.codes].movedim(-1, 1))
    assert not torch.equal(quantiser.codebook, before["codebook"])


def test_evaluation_changes_nothing_and_counts_nothing():
    quantiser, z = build(), vectors(2, 4, 2, 3, 3)
    before = state(quantiser)
    quantiser.eval()(z)
    with torch.no_grad():
        quantiser.train()(z)
    assert same(state(quantiser), before)
    quantiser(z[:1])
    told = quantiser.update(**RULE)
    other = build()
    other(z[:1])
    assert same({**told}, {**other.update(**RULE)}) and same(state(quantiser), state(other))


def test_micro_batches_make_the_step_of_their_batch():
    whole, parts, z = build(dtype=torch.float64), build(dtype=torch.float64), vectors(4, 4, 2, 3, 3)
    whole(z)
    for part in z.split([1, 3]):
        parts(part)
    told = whole.update(**RULE), parts.update(**RULE)
    torch.testing.assert_close(parts.codebook, whole.codebook, rtol=1e-12, atol=0)
    torch.testing.assert_close(told[1], told[0], rtol=1e-12, atol=0)


def test_figures_are_of_the_steps_use():
    quantiser = build()
    rows = quantiser.codebook[[0, 0, 1, 1, 4, 4]]
    quantiser(rows.t()[None, :, None, None])
    told = quantiser.update(**RULE)
    assert told["perplexity"].item() == pytest.approx(3.0) and told["used"] == 3


def test_unused_codes_move_onto_vectors_of_the_batch_and_stay():
    quantiser, z = build(codes=8), vectors(2, 4, 2, 3, 3)
    quantiser.codebook[5:] += 100  # nobody chooses these
    quantiser.sums[5:] += 100
    for _ in range(60):  # 0.9^60 is below 0.03 of the mean use, 36 / 8
        quantiser(z)
        told = quantiser.update(restart=0.03, rng=draws(3, [0]), **RULE)
        if told["restarted"]:
            break
    rows = z.movedim(1, -1).reshape(-1, 4)
    moved = [k for k in range(8) if (rows == quantiser.codebook[k]).all(1).any()]
    assert moved == [5, 6, 7] and told["restarted"] == 3
    least = 0.03 * 36 / 8
    torch.testing.assert_close(quantiser.counts[5:], torch.full((3,), least))
    torch.testing.assert_close(quantiser.sums[5:], least * quantiser.codebook[5:])
    after = quantiser.codebook.clone()
    quantiser(after[0][None, :, None, None, None])  # nothing near them
    quantiser.update(**RULE)
    torch.testing.assert_close(quantiser.codebook[5:], after[5:], rtol=1e-3, atol=1e-3)


def test_codes_in_even_use_stay_while_averages_have_hardly_begun():
    quantiser = build(codes=4)
    quantiser.fill(quantiser.codebook.clone(), average="debiased")
    quantiser(quantiser.codebook.t()[None, :, None, None])
    told = quantiser.update(decay=0.99, eps=1e-5, restart=0.9, rng=draws(0, [0]), average="debiased")
    assert told["restarted"] == 0


@pytest.mark.parametrize("average", ["ones", "debiased"])
def test_what_is_saved_makes_the_same_next_step(average):
    first, z = build(), vectors(3, 2, 4, 2, 3, 3)
    first.fill(vectors(6, 4, seed=1), average=average)
    for block in z[:2]:
        first(block)
        first.update(average=average, **RULE)
    second = Quantiser(codes=6, width=4)
    second.load_state_dict(state(first))
    for quantiser in (first, second):
        quantiser(z[2])
        quantiser.update(average=average, **RULE)
    assert same(state(first), state(second))


@pytest.mark.parametrize("rows", [20, 6, 4])
def test_a_codebook_from_data_has_its_vectors(rows):
    quantiser, given = Quantiser(codes=6, width=4), vectors(rows, 4)
    quantiser.start(given, "data", torch.Generator().manual_seed(0))
    gaps = torch.cdist(quantiser.codebook, given)
    most = min(rows, 6)
    assert (gaps[:most].amin(1) < 1e-6).all() and len(set(gaps[:most].argmin(1).tolist())) == most
    assert ((gaps[most:].amin(1) > 0) & (gaps[most:].amin(1) < 0.05)).all()  # repeated, and moved a little
    assert quantiser.counts.eq(1).all() and torch.equal(quantiser.sums, quantiser.codebook)


def test_random_codebooks_have_the_stated_spread():
    quantiser, rows = Quantiser(codes=50, width=40), vectors(2, 40)
    quantiser.start(rows, "normal", torch.Generator().manual_seed(0))
    assert quantiser.codebook.std().item() == pytest.approx(1.0, abs=0.05)
    quantiser.start(rows, "uniform", torch.Generator().manual_seed(0), average="debiased")
    assert 0.019 < quantiser.codebook.abs().max() <= 1 / 50
    assert quantiser.counts.eq(0).all() and quantiser.sums.eq(0).all()


RANK = """
import sys
import torch
from torch import distributed
from tests.systems.test_video_vqvae_quantiser import moved, share

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.save([moved(share()[rank], restart) for restart in (0.0, 0.5)], f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def share():
    """Blocks of four steps, whose rows are spread unevenly over two processes."""
    z = vectors(4, 5, 4, 2, 3, 3)
    return z[:, :2], z[:, 2:]


def moved(blocks, restart):
    """Buffers after some steps, and what the last one told."""
    quantiser = build(codes=16)
    rows = blocks[0][:2].movedim(1, -1).flatten(0, -2)  # others in every process: the first one's count
    quantiser.start(rows, "data", torch.Generator().manual_seed(0))
    for k, block in enumerate(blocks):
        quantiser(block)
        told = quantiser.update(restart=restart, rng=draws(k, [0]), **RULE)
    return {**state(quantiser), **told}


@pytest.mark.slow
def test_two_processes_have_the_codebook_of_one(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(tmp_path / "rank.py")]
    running = [
        subprocess.Popen([*words, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(same(a, b) for a, b in zip(first, second)), "processes have parted"
    assert first[1]["restarted"] > 0
    whole = moved(torch.cat(share(), dim=1), 0.0)
    torch.testing.assert_close(first[0], whole, rtol=1e-5, atol=1e-6)
