"""bottlenecks.py: codes, gradients, and a codebook that follows the latents."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

from modeling_mm.bottlenecks import FiniteScalarQuantizer, VectorQuantizer
from tests.fakes.own_codecs import own_config
from tests.fakes.ranks import RANKS, join, launch_well

WAITS = 120  # seconds
STEPS = 3


def latents(rows: int = 4, channels: int = 4, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Return what an encoder that learns gives."""
    return torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def quantizer(**fields) -> VectorQuantizer:
    return VectorQuantizer(own_config(bottleneck="vq", **fields))


# ---- Rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[4, 3, 3], [8, 5, 5, 5], [2, 7]])
def test_codes_of_fsq_are_every_combination_of_levels_once(levels):
    fsq = FiniteScalarQuantizer(own_config(fsq_levels=levels))
    size = torch.tensor(levels).prod().item()
    codes = torch.arange(size).view(1, 1, size)
    values = fsq.to_latents(codes)
    assert values.shape == (1, len(levels), 1, size)
    assert values.abs().max() <= 1
    rows = {tuple(row) for row in values[0, :, 0].T.tolist()}
    axes = [[(digit - level // 2) / (level // 2) for digit in range(level)] for level in levels]
    assert len(rows) == size
    for row, expected in zip(sorted(rows), sorted(itertools.product(*axes)), strict=True):
        assert row == pytest.approx(expected)


def test_latents_of_fsq_and_their_codes_agree():
    fsq = FiniteScalarQuantizer(own_config())
    states = 2 * latents(channels=3)
    output = fsq(states)
    assert output.codes.unique().numel() > 30  # of 36
    assert torch.equal(fsq.to_latents(output.codes), output.latents)
    assert torch.equal(fsq.to_codes(states), output.codes)
    assert torch.equal(fsq.final(states), output.latents)


def test_extreme_latents_have_the_outermost_levels():
    fsq = FiniteScalarQuantizer(own_config())
    assert fsq.to_codes(torch.full((1, 3, 1), -100.0)).item() == 0
    assert fsq.to_codes(torch.full((1, 3, 1), 100.0)).item() == 35


@pytest.mark.parametrize("training", [True, False])
def test_gradients_pass_fsq_in_training_and_evaluation(training):
    fsq = FiniteScalarQuantizer(own_config()).train(training)
    states = latents(channels=3).requires_grad_()
    fsq(states).latents.sum().backward()
    assert (states.grad > 0).all()


# ---- The codebook ---------------------------------------------------------------------------------------------------


def test_the_nearest_vectors_are_found():
    vq = quantizer().eval()
    vq.codebook.copy_(torch.randn(vq.codebook.shape))
    states = latents()
    output = vq(states)
    flat = states.movedim(1, -1).reshape(-1, 4)
    assert torch.equal(output.codes.flatten(), torch.cdist(flat, vq.codebook).argmin(1))
    assert torch.allclose(output.latents, vq.to_latents(output.codes), atol=1e-6)
    expected = 0.25 * (states - vq.to_latents(output.codes)).pow(2).mean()
    assert torch.allclose(output.loss, expected)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_pass_straight_through_in_training_and_evaluation(training):
    vq = quantizer(commitment_weight=0.0).train(training)
    states = latents().requires_grad_()
    weights = latents(seed=1)
    output = vq(states)
    ((output.latents * weights).sum() + output.loss).backward()
    assert torch.allclose(states.grad, weights)


def test_the_codebook_moves_only_where_gradients_are_recorded():
    vq = quantizer()
    vq.train()(latents())
    before = vq.codebook.clone()
    with torch.no_grad():
        vq.train()(latents(seed=1))
    vq.eval()(latents(seed=1))
    assert torch.equal(vq.codebook, before)
    vq.train()(latents(seed=1))
    assert not torch.equal(vq.codebook, before)


def test_the_codebook_is_the_moving_average_of_its_latents():
    vq = quantizer(codebook_size=2, codebook_decay=0.9, dead_code_threshold=0.0).train()
    vq.is_started.fill_(True)
    vq.codebook.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    vq.sums.copy_(vq.codebook)
    states = torch.zeros(1, 4, 3)
    states[0, 0] = torch.tensor([2.0, 3.0, -2.0])
    vq(states.requires_grad_())
    # uses: 0.9 + 0.1 * (2, 1); sums: 0.9 * (1, -1) + 0.1 * (5, -2)
    assert torch.allclose(vq.uses, torch.tensor([1.1, 1.0]))
    assert torch.allclose(vq.codebook[:, 0], torch.tensor([1.4 / 1.1, -1.1]))


def test_dead_codes_are_revived_by_latents_of_the_batch():
    vq = quantizer(codebook_size=8, codebook_decay=0.5).train()
    vq.is_started.fill_(True)
    vq.codebook.fill_(100.0)
    vq.codebook[0] = 0.0
    vq.sums.copy_(vq.codebook)
    states = latents()
    assert vq.to_codes(states).unique().numel() == 1
    for _ in range(6):
        vq(states)
    assert vq.codebook.abs().max() < 5
    assert vq.to_codes(states).unique().numel() == 8


def test_the_first_batch_gives_the_first_codebook():
    vq = quantizer(codebook_size=16, codebook_decay=0.999).train()
    states = latents() + 50
    output = vq(states)
    assert output.codes.unique().numel() == 16 and vq.is_started
    assert (vq.codebook - 50).abs().max() < 10


def test_a_first_batch_with_fewer_latents_than_codes():
    vq = quantizer(codebook_size=16).train()
    output = vq(latents(rows=1, size=2))
    assert torch.isfinite(vq.codebook).all() and output.codes.shape == (1, 2, 2)
    assert len(vq.codebook.unique(dim=0)) == 16


# ---- Several processes ----------------------------------------------------------------------------------------------


def followed(rank: int | None) -> VectorQuantizer:
    """Return a codebook that has followed the batches, or one process's rows of them, from vectors that are given."""
    vq = quantizer(codebook_size=8, codebook_decay=0.7, dead_code_threshold=0.0).train()
    vq.is_started.fill_(True)
    vq.codebook.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(7)))
    vq.sums.copy_(vq.codebook)
    for seed in range(STEPS):
        batch = latents(rows=2 * RANKS, seed=seed).detach()
        vq((batch if rank is None else batch.chunk(RANKS)[rank]).requires_grad_())
    return vq


def started(rank: int) -> torch.Tensor:
    """Return the vectors that one process's latents began, with dead ones replaced in the second step."""
    torch.manual_seed(rank)
    vq = quantizer(codebook_size=8, codebook_decay=0.5, dead_code_threshold=0.8).train()
    for step in range(2):
        vq(latents(rows=1, size=2, seed=10 * step + rank))
    return vq.codebook


@pytest.mark.timeout(WAITS + 30)
def test_two_processes_have_the_codebook_of_one_with_the_whole_batch(tmp_path):
    launch_well(__file__, tmp_path, timeout=WAITS)
    found = [torch.load(tmp_path / f"found.{rank}.pt", weights_only=True) for rank in range(RANKS)]
    whole = followed(None)
    for each in found:
        assert torch.allclose(each["uses"], whole.uses, atol=1e-5)
        assert torch.allclose(each["codebook"], whole.codebook, atol=1e-5)
    assert torch.equal(found[0]["started"], found[1]["started"])


def main(folder: Path) -> None:
    rank = join(WAITS)
    vq = followed(rank)
    found = {"uses": vq.uses, "codebook": vq.codebook, "started": started(rank)}
    torch.save(found, folder / f"found.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
