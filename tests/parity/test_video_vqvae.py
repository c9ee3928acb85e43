"""Video VQ-VAE's quantiser against steps of equations 1 to 3 that were worked out in float64.

Which cases a folder has, and how each begins and counts, is read from its README. Its blocks have channels last.
"""

import re

import pytest
import torch
from safetensors.torch import load_file

from framecast.systems.video_vqvae.quantiser import Quantiser, smoothed
from tests.parity.walk import SCHEDULE, Case, folders

FLOAT32, HUGE = (
    1e-6,
    1e-5,
)  # absolute on codebooks of the folder's own scale; relative where a case throws codes far out


class Steps(Case):
    """One folder of kind vqvae-ema, whose README alone holds settings."""

    def __init__(self, folder):
        self.seen, self.errors, self.too_far, self.tensors = set(), {}, [], {}
        for file in sorted(folder.glob("*.safetensors")):
            self.tensors |= load_file(file)
        readme = (folder / "README.md").read_text()
        self.decay, self.beta = (float(re.search(rf"{w}\) = ([\d.]+\d)", readme)[1]) for w in ("decay", "commitment"))
        row = r"^\| `(\w+)` \| (ones|zeros) \| (codebook0|zeros) \| (?:none.*|eps = ([\d.e-]+)) \| (no|yes).* \| .* \|$"
        self.cases = {
            name: {"hits": hits == "ones", "sums": sums != "zeros", "eps": float(eps or 0), "debiased": word == "yes"}
            for name, hits, sums, eps, word in re.findall(row, readme, flags=re.MULTILINE)
        }
        names = set(re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| (`[^|]*) \| \[", readme, flags=re.MULTILINE))))
        self.described = {name.replace("<case>", case) for name in names for case in self.cases}
        self.described |= set(re.findall(rf"`((?:tie|{'|'.join(self.cases)})\.\w+)`", readme))


def begun(case, told, dtype):
    """A quantiser before step 0."""
    book = case["codebook0"].to(dtype)
    quantiser = Quantiser(codes=len(book), width=book.shape[1]).to(dtype)
    quantiser.fill(book, average="debiased" if told["debiased"] else "ones")
    quantiser.counts.fill_(told["hits"])
    quantiser.sums.copy_(book * told["sums"])
    return quantiser


def stepped(case, told, dtype):
    """All that a case has, step after step, by key."""
    quantiser, average = begun(case, told, dtype), "debiased" if told["debiased"] else "ones"
    found = {}
    for k, (block, upstream) in enumerate(zip(case["z"].to(dtype), case["upstream_grad"].to(dtype), strict=True)):
        before, z = quantiser.codebook.clone(), block.movedim(-1, 1).requires_grad_()
        made = quantiser(z)
        hits, total = quantiser._hits.clone(), quantiser._total.clone()
        commitment = made.commitment().mean()
        ((upstream.movedim(-1, 1) * made.values).sum() + case.beta * commitment).backward()
        told_of_step = quantiser.update(decay=case.decay, eps=told["eps"], average=average)
        there = 1 - case.decay ** (k + 1) if told["debiased"] else 1.0
        ours = {"codebook_before": before, "indices": made.codes, "quantized": made.values.movedim(1, -1)}
        ours |= {"counts": hits, "sums": total, "ema_count": quantiser.counts / there}
        ours |= {"ema_sum": quantiser.sums / there, "smoothed_count": smoothed(quantiser.counts / there, told["eps"])}
        ours |= {"codebook": quantiser.codebook.clone(), "commit_mean": commitment}
        ours |= {"commit_sum": made.commitment().sum(), "grad_z": z.grad.movedim(1, -1)}
        ours |= {"perplexity": told_of_step["perplexity"], **of_workers(begun_again(quantiser, before), block)}
        for name, value in ours.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def begun_again(quantiser, book):
    """Another one with a codebook that is to be used, not moved."""
    other = Quantiser(codes=len(book), width=book.shape[1]).to(book.dtype)
    other.codebook.copy_(book)
    return other


def of_workers(quantiser, block):
    """What workers gather that hold one item of the batch each."""
    hits, sums = [], []
    for item in block:
        quantiser(item[None].movedim(-1, 1))
        hits.append(quantiser._hits - sum(hits))
        sums.append(quantiser._total - sum(sums))
    return {"rank_counts": torch.stack(hits), "rank_sums": torch.stack(sums)}


@pytest.mark.parametrize("folder", folders("vqvae-ema"))
def test_codebooks_agree_in_every_tensor(folder):
    case = Steps(folder)
    assert case.cases
    for name, told in case.cases.items():
        for key, ours in stepped(case, told, torch.float64).items():
            if f"{name}.{key}" in case or f"{name}.{key}" in case.described:
                case.close(f"{name}.{key}", ours, SCHEDULE)
    if "tie.codebook" in case:
        book = case["tie.codebook"]
        ties = begun_again(Quantiser(codes=len(book), width=book.shape[1]).double(), book)
        case.equal("tie.indices", ties.nearest(case["tie.z"]))
    case.finish()


@pytest.mark.parametrize("folder", folders("vqvae-ema"))
def test_codebooks_in_float32_choose_the_same_codes(folder):
    case = Steps(folder)
    usual = 10 * case["codebook0"].abs().max().item()
    for name, told in case.cases.items():
        ours = stepped(case, told, torch.float32)
        case.equal(f"{name}.indices", ours["indices"])
        most = case[f"{name}.codebook"].abs().max().item()
        case.close(f"{name}.codebook", ours["codebook"], FLOAT32 / most if most <= usual else HUGE)
    assert not case.too_far, case.too_far
