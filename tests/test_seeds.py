from __future__ import annotations

import torch

from rlrt.seeds import derive, permutation, uniforms


def test_seeds_do_not_overlap_between_streams():
    seeds = {derive(s, "a", step, g) for s in range(5) for step in range(50) for g in range(8)}
    assert len(seeds) == 5 * 50 * 8
    assert derive(1, "a", 2) != derive(2, "a", 1)
    assert derive(1, "a") != derive(1, "b")
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_are_the_same_on_every_machine():
    assert derive(0, "train", 1, "p", 0) == 7838534514153825035


def test_each_row_depends_on_its_own_seed():
    whole = uniforms([5, 6, 7], 4)
    assert torch.equal(whole[1], uniforms([6], 4)[0])
    assert torch.equal(whole[:, :2], uniforms([5, 6, 7], 2))
    assert whole.dtype == torch.float64


def test_permutation():
    assert sorted(permutation(10, 0, "x")) == list(range(10))
    assert permutation(10, 0, "x") != permutation(10, 0, "y")
