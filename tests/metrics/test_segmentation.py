"""Pixels without identity, by hand; and the layouts of AVSBench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import Tracks, make_crowds, percent, write

from avis_stream.data.annotations import read_annotations, read_predictions
from avis_stream.data.avsbench import mask_files, mask_pairs, read_labels, voc_palette
from avis_stream.errors import DataError
from avis_stream.metrics import binary_scores, label_maps, segmentation_summary, semantic_scores


def row(*labels: int) -> np.ndarray:
    return np.array([labels])


def test_binary_by_hand() -> None:
    """Frame 0: 2 pixels wanted, 1 of them shown and 1 beside: IoU 1/3, P = R = 1/2, F = 1.3/4 / (1.3/2) = 1/2.

    Frame 1: nothing sounds, 1 of 4 pixels shown: background 3/4; it has no F. Frame 2: P 1, R 1/2, IoU 1/2,
    F = 1.3/2 / (0.3 + 1/2) = 0.65 / 0.8.
    """
    frames = [
        (row(1, 1, 0, 0) > 0, row(0, 1, 1, 0) > 0),
        (row(0, 0, 0, 0) > 0, row(0, 0, 0, 1) > 0),
        (row(1, 1, 0, 0) > 0, row(1, 0, 0, 0) > 0),
    ]
    scores = binary_scores(frames)
    assert scores.miou == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)
    assert scores.fscore == pytest.approx((1 / 2 + 0.65 / 0.8) / 2)


def test_what_is_not_zero_belongs_to_a_mask() -> None:
    """As a PNG has it: 255."""
    half = np.array([[255, 255, 0, 0]], np.uint8)
    assert binary_scores([(half, half)]) == binary_scores([(half > 0, half > 0)])
    assert binary_scores([(0 * half, half)]).miou == 0.5


def test_pixels_of_crowds_are_on_no_map(tmp_path: Path) -> None:
    """Of 100 pixels 16 are a dog and 16 a crowd of dogs. Shown are 20 that hold the dog's, and 12 on the crowd.

    The latter do not count: IoU 16/20, of the background 80/84.
    """
    dog, crowd = (0, 0, 4, 4), (5, 5, 4, 4)
    shown: Tracks = [("dog", [(0, 0, 4, 5)]), ("dog", [(5, 5, 4, 3)])]
    paths = write(tmp_path, [(1, [("dog", [dog]), ("dog", [crowd])], shown)])
    make_crowds(paths[0], 1)
    truth = read_annotations(paths[0])
    scores = segmentation_summary(label_maps(truth, read_predictions(paths[1], truth)))
    assert scores["binary_mIoU"] == percent(16 / 20)
    assert scores["semantic_mIoU"] == percent((16 / 20 + 80 / 84) / 2)
    nobody = segmentation_summary(label_maps(truth, {}))
    assert nobody["semantic_mIoU"] == percent(84 / 100 / 2), "the crowd is background"


@pytest.mark.parametrize(("truth", "shown"), [((2, 3), (1, 3)), ((0, 5), (0, 5)), ((2, 3), (2, 3, 1))])
def test_masks_of_different_sizes_are_refused(truth: tuple[int, ...], shown: tuple[int, ...]) -> None:
    pair = np.ones(truth, np.int64), np.ones(shown, np.int64)
    with pytest.raises(DataError, match="of one size"):
        binary_scores([pair])
    with pytest.raises(DataError, match="of one size"):
        semantic_scores([pair])


def test_semantic_by_hand() -> None:
    """Two pixels each of background, class 1 and class 2; one pixel of class 1 is called 2.

    IoU: background 1, class 1 1/2, class 2 2/3. In the second frame there is background alone, and it is right.
    """
    scores = semantic_scores([(row(0, 0, 1, 1, 2, 2), row(0, 0, 1, 2, 2, 2)), (row(0, 0), row(0, 0))])
    assert scores.miou_of_class == pytest.approx({0: 1, 1: 1 / 2, 2: 2 / 3})
    assert scores.miou == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert scores.fscore_of_class[1] == pytest.approx(1.3 / 2 / (0.3 + 1 / 2))
    assert scores.fscore_of_class[2] == pytest.approx(1.3 * 2 / 3 / (0.3 * 2 / 3 + 1))


@pytest.mark.parametrize(
    ("truth", "predicted", "miou", "fscore"),
    [((0, 0), (0, 0), 1, None), ((1, 1), (0, 0), 0, 0), ((0, 0), (1, 1), 0, None), ((1, 1), (1, 1), 1, 1)],
)
def test_edges(truth: tuple[int, ...], predicted: tuple[int, ...], miou: float, fscore: float | None) -> None:
    scores = binary_scores([(row(*truth) > 0, row(*predicted) > 0)])
    assert (scores.miou, scores.fscore) == (miou, fscore)


def test_nothing_at_all() -> None:
    assert binary_scores([]).miou is None
    assert semantic_scores([]).miou is None
    assert segmentation_summary([])["semantic_F"] is None


def test_predictions_as_label_maps(tmp_path: Path) -> None:
    """Where two masks overlap the better score is on top; the person's upper half, 8 pixels, is called dog."""
    truth = [("person", [(0, 0, 4, 4)])]
    answers = [("dog", [(0, 0, 4, 2)]), ("person", [(0, 0, 4, 4)])]
    paths = write(tmp_path, [(1, truth, answers)])
    annotations = read_annotations(paths[0])
    maps = list(label_maps(annotations, read_predictions(paths[1], annotations)))
    assert np.bincount(maps[0][1].ravel()).tolist() == [84, 8, 8]
    summary = segmentation_summary(maps)
    assert (summary["binary_mIoU"], summary["binary_F"]) == (100, 100)
    assert summary["semantic_mIoU"] == round(100 * (1 + 1 / 2 + 0) / 3, 2)


def save(path: Path, labels: np.ndarray, mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "RGB":
        Image.fromarray(voc_palette(71)[labels]).save(path)
    elif mode == "P":
        picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
        picture.putdata(labels.ravel().tolist())
        picture.save(path)
    else:
        Image.fromarray((255 * (labels > 0)).astype(np.uint8)).convert(mode).save(path)


@pytest.mark.parametrize("layout", ["gt_masks/test/dog/abc/abc_{}.png", "gt_masks/abc/abc_{}.png"])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_avsbench_objects(layout: str, mode: str, tmp_path: Path) -> None:
    for side, labels in (("truth", row(0, 0, 1, 1)), ("ours", row(0, 1, 1, 1))):
        for k in (1, 2):
            save(tmp_path / side / layout.format(k), labels, mode)
    assert len(mask_files(tmp_path / "truth")) == 2
    scores = binary_scores((t > 0, p > 0) for t, p in mask_pairs(tmp_path / "truth", tmp_path / "ours"))
    assert scores.miou == pytest.approx(2 / 3)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_avsbench_semantic(mode: str, tmp_path: Path) -> None:
    labels = row(0, 17, 70, 3)
    save(tmp_path / "v2" / "abc" / "labels_semantic" / "0.png", labels, mode)
    save(tmp_path / "v2" / "abc" / "labels_rgb" / "0.png", labels, "RGB")
    (name,) = mask_files(tmp_path / "v2")
    assert read_labels(tmp_path / "v2" / name).tolist() == labels.tolist()
    assert semantic_scores(mask_pairs(tmp_path / "v2", tmp_path / "v2")).miou == 1


def test_voc_palette_is_the_known_one() -> None:
    assert voc_palette(4).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert voc_palette(16)[15].tolist() == [192, 128, 128]  # person, in PASCAL VOC


def test_doors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        mask_files(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.png"):
        mask_files(tmp_path)
    save(tmp_path / "truth" / "a.png", row(0, 1), "L")
    with pytest.raises(DataError, match=r"a.png: no such mask"):
        list(mask_pairs(tmp_path / "truth", tmp_path / "ours"))
    save(tmp_path / "ours" / "a.png", row(0, 1, 1), "L")
    with pytest.raises(DataError, match=r"ours/a.png is 3x1, the truth 2x1"):
        list(mask_pairs(tmp_path / "truth", tmp_path / "ours"))
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "ours" / "a.png")
    with pytest.raises(DataError, match=r"colour \[1, 2, 3\]"):
        read_labels(tmp_path / "ours" / "a.png")
    (tmp_path / "ours" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_labels(tmp_path / "ours" / "a.png")
