"""Run lengths and polygons of masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avis_stream.data import rle
from avis_stream.errors import DataError


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 9), (48, 64), (720, 1280)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_there_and_back(shape: tuple[int, int], share: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    encoded = rle.encode(mask)
    assert encoded["size"] == list(shape)
    assert torch.equal(rle.decode(encoded), mask)
    assert rle.encode(mask.numpy()) == encoded
    assert rle.area(encoded) == int(mask.sum())


@pytest.mark.parametrize("count", [0, 1, 255, 256, 600])
def test_pixels_of_any_number_of_masks(count: int) -> None:
    masks = [rle.encode(np.arange(48).reshape(6, 8) < n % 49) for n in range(count)]
    assert rle.areas(masks).tolist() == [n % 49 for n in range(count)]


def test_any_memory_layout() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[3:9, 10:12] = True
    assert rle.encode(mask.T.contiguous().T) == rle.encode(mask)
    assert rle.encode(np.asfortranarray(mask.numpy())) == rle.encode(mask)
    assert rle.box(rle.encode(mask)) == [10, 3, 2, 6]


def test_every_form_that_coco_knows() -> None:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:3, 2:4] = True
    forms = [
        rle.encode(mask),
        {"size": [4, 5], "counts": rle.encode(mask)["counts"].encode()},
        {"size": [4, 5], "counts": [9, 2, 2, 2, 5]},
        [[2, 1, 4, 1, 4, 3, 2, 3]],
    ]
    for form in forms:
        assert torch.equal(rle.decode(form, 4, 5), mask)


def test_polygons_are_joined_and_crumbs_ignored() -> None:
    two = rle.from_polygons([[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 6, 4, 6, 6, 4, 6], [1, 1, 3, 3]], 8, 8)
    assert rle.area(two) == 8
    assert rle.area(rle.from_polygons([], 8, 8)) == 0
    assert rle.box(rle.from_polygons([], 8, 8)) == [0, 0, 0, 0]


@pytest.mark.parametrize("counts", [[20], [20, 0], [12, 0, 8, 0], [0, 0, 20]])
def test_a_mask_without_pixels_has_no_box(counts: list[int]) -> None:
    """Of runs that end in one of no pixels pycocotools makes a box of 2^32."""
    assert rle.box(rle.as_rle({"size": [4, 5], "counts": counts})) == [0, 0, 0, 0]


@pytest.mark.parametrize("wrong", [None, "abc", {"size": [1, 1]}, [[0, 0, 1, 1, 2, 2]]])
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(DataError, match="a segmentation must be"):
        rle.decode(wrong)


@pytest.mark.parametrize("counts", ["nonsense", "1", "", "zzzz", "0" * 50, "PPTl0", "é", [5], [-4, 24], []])
def test_runs_that_do_not_fill_the_picture_are_refused(counts: str | list[int]) -> None:
    """Given to pycocotools as they are, some of these never return."""
    with pytest.raises(DataError, match="do not fill a picture of 5x4"):
        rle.as_rle({"size": [4, 5], "counts": counts})


@pytest.mark.parametrize("far", [float("nan"), float("inf"), -float("inf"), 1e12, -1e7])
def test_polygons_without_end_are_refused(far: float) -> None:
    """Given to pycocotools they take all memory."""
    with pytest.raises(DataError, match="a polygon's points must be finite and within 1000000 pixels"):
        rle.decode([[0, 0, 5, 0, far, 5]], 4, 5)
    beyond = rle.from_polygons([[-1e4, -1e4, 1e4, -1e4, 1e4, 1e4, -1e4, 1e4]], 4, 5)
    assert rle.area(beyond) == 20


def test_runs_of_any_length_are_read() -> None:
    """Text of one to five characters a number, growing and shrinking runs, a picture of ones."""
    random = np.random.default_rng(0)
    for shape in ((1, 1), (3, 7), (64, 64), (720, 1280), (3000, 4000)):
        for share in (0.0, 1.0, 0.5, 1e-4):
            mask = random.random(shape) < share
            encoded = rle.encode(mask)
            assert rle.as_rle(encoded) == encoded


def test_one_mask_at_a_time() -> None:
    with pytest.raises(DataError, match="one mask at a time"):
        rle.encode(torch.zeros(2, 4, 4, dtype=torch.bool))
