"""Masks in pieces: of several of comparable size one stays."""

from __future__ import annotations

import torch

from avis_stream.models.pieces import best_pieces


def canvas(*pieces: tuple[int, int, float]) -> torch.Tensor:
    """Logits [20, 60]: pieces from one column to another, 10 rows high, on nothing."""
    logits = torch.full((20, 60), -5.0)
    for first, stop, value in pieces:
        logits[5:15, first:stop] = value
    return logits


def test_of_two_alike_the_surer_one_stays() -> None:
    both = canvas((0, 10, 1.0), (30, 40, 3.0))
    kept = best_pieces(both[None])[0]
    assert torch.equal(kept[:, 20:], both[:, 20:])
    assert (kept[5:15, :10] < -5).all()
    assert torch.equal(kept[:5], both[:5])


def test_what_is_cut_off_stays_and_crumbs_go() -> None:
    mask = canvas((0, 20, 2.0), (30, 35, 4.0))  # a quarter of the best one's area
    assert torch.equal(best_pieces(mask[None])[0], mask)
    littered = mask.clone()
    littered[0:3, 50:53] = 9.0  # 9 pixels of 200
    assert torch.equal(best_pieces(littered[None])[0] > 0, mask > 0)


def test_each_mask_is_judged_by_itself() -> None:
    whole, nothing, twins = canvas((0, 30, 1.0)), canvas(), canvas((0, 10, 1.0), (20, 30, 1.0), (40, 50, 2.0))
    kept = best_pieces(torch.stack([whole, nothing, twins])[None])
    assert torch.equal(kept[0, 0], whole)
    assert torch.equal(kept[0, 1], nothing)
    assert (kept[0, 2] > 0).any(dim=0).nonzero()[:, 0].tolist() == list(range(40, 50))
    assert kept.shape == (1, 3, 20, 60)


def test_huge_logits_are_no_trouble() -> None:
    kept = best_pieces(canvas((0, 10, 900.0), (30, 45, 900.0))[None])
    assert not (kept[0, :, :10] > 0).any()
    assert (kept[0, 5:15, 30:45] > 0).all()
