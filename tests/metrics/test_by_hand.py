"""Scores that a reader can check with a pencil, and what each mode makes of the same answer."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

from tiny import Box, percent, score, write

from avis_stream.metrics import evaluate

A: Box = (0, 0, 4, 4)
B: Box = (5, 5, 4, 4)


def test_silence_kept(tmp_path: Path) -> None:
    """A dog barks in seconds 0 and 1 and is silent in second 2; the answer says just that.

    Fixed: 3 of 3 right. Official: the silent second counts as wrong because the video has a prediction at all, 2 of 3.
    """
    video = (3, [("dog", [A, A, None])], [("dog", [A, A, None])])
    fixed = score(tmp_path, "fixed", video)
    assert (fixed["FA"], fixed["FAn"], fixed["FAs"], fixed["FAm"]) == (100, 100, 100, None)
    assert (fixed["HOTA"], fixed["AP_all"], fixed["IDF1"], fixed["frame_AP50"]) == (100, 100, 100, 100)
    official = score(tmp_path, "official", video)
    assert (official["FA"], official["FAn"], official["FAs"]) == (percent(2 / 3), 0, 100)


def test_a_mask_beside_the_mark(tmp_path: Path) -> None:
    """The mask is shifted by half its width: 8 pixels in common of 16 + 16 - 8 = 24, IoU 1/3.

    6 of the 19 thresholds (0.05 to 0.30) lie below 1/3. LocA is 1/3 at those and by definition 1 at the other 13.
    """
    scores = score(tmp_path, "fixed", (2, [("dog", [A, A])], [("dog", [(2, 0, 4, 4)] * 2)]))
    assert scores["FA"] == percent(6 / 19)
    assert scores["HOTA"] == percent(6 / 19)
    assert scores["LocA"] == percent((6 / 3 + 13) / 19)
    assert (scores["AP_all"], scores["IDF1"], scores["frame_AP50"]) == (0, 0, 0)


def test_an_identity_that_changes(tmp_path: Path) -> None:
    """One dog over four seconds, answered by one track in the first two and by another in the last two.

    FSLA knows one track per object: 2/4. Every mask is found (DetA 1), but each track shares 2 frames of
    4 + 2 - 2 with the dog (AssA 1/2): HOTA sqrt(1/2). IDF1 = 2*2 / (2*2 + 2 + 2). A track overlap of 8/16 passes 1 of
    the 10 thresholds of mAP, where the better scored track takes the dog and the other comes after it: 1/10.
    """
    answers = [("dog", [A, A, None, None]), ("dog", [None, None, A, A])]
    scores = score(tmp_path, "fixed", (4, [("dog", [A] * 4)], answers))
    assert scores["FA"] == percent(2 / 4)
    assert (scores["DetA"], scores["AssA"], scores["HOTA"]) == (100, 50, percent(sqrt(1 / 2)))
    assert (scores["AssRe"], scores["AssPr"]) == (50, 100)
    assert (scores["IDF1"], scores["IDSW"]) == (50, 1)
    assert (scores["AP_all"], scores["AR_all"]) == (10, 10)


def test_one_of_two_missed(tmp_path: Path) -> None:
    """Dog and cat sound for two seconds; the cat is found in the first only.

    FSLA: second 0 right, second 1 wrong. Cat: 1 of 2 found (DetA 1/2), by a track that shares 1 of 2 frames (AssA 1/2),
    HOTA sqrt(1/4) = 1/2; dog 1; mean 3/4. IDF1 = 2*3 / (2*3 + 1). mAP: dog 1, cat 1/10 (track overlap 1/2).
    """
    truth = [("dog", [A, A]), ("cat", [B, B])]
    scores = score(tmp_path, "fixed", (2, truth, [("dog", [A, A]), ("cat", [B, None])]))
    assert (scores["FA"], scores["FAm"]) == (50, 50)
    assert scores["HOTA"] == percent((1 + 1 / 2) / 2)
    assert scores["HOTA_pooled"] == percent(sqrt(3 / 4 * (1 + 1 + 1 / 2) / 3))  # three of four found; see above
    assert scores["IDF1"] == percent(6 / 7)
    assert scores["AP_all"] == percent((1 + 1 / 10) / 2)
    assert scores["frame_AP50"] == percent((1 + 51 / 101) / 2)  # recalls 0, 0.01 ... 0.50 are reached


def test_masks_of_a_track_may_have_scores_of_their_own(tmp_path: Path) -> None:
    """A dog is shown in two seconds and barks in the second one only.

    By one score a track the false alarm comes first: precision 1/2 at all recalls. By a score a mask the hit does: 1.
    """
    truth, predicted = write(tmp_path, [(2, [("dog", [None, A])], [("dog", [A, A])])])
    entries = json.loads(predicted.read_text())
    assert evaluate(truth, predicted, "fixed")["frame_AP50"] == 50
    predicted.write_text(json.dumps([{**entries[0], "frame_scores": [0.2, 0.7]}]))
    assert evaluate(truth, predicted, "fixed")["frame_AP50"] == 100


def test_a_false_alarm_in_silence(tmp_path: Path) -> None:
    """A dog barks in second 0 only; the answer shows it in second 1, too, and is silent in second 2.

    Seconds 0 and 2 are right, 1 of 2 silent ones. One hit, one false alarm: DetA 1/2; the track shares 1 frame of
    1 + 2 - 1 with the dog: AssA 1/2; HOTA 1/2. Official: no silent second can be right, 1/3.
    """
    video = (3, [("dog", [A, None, None])], [("dog", [A, A, None])])
    scores = score(tmp_path, "fixed", video)
    assert (scores["FA"], scores["FAn"], scores["FAs"]) == (percent(2 / 3), 50, 100)
    assert (scores["HOTA"], scores["DetPr"], scores["DetRe"]) == (50, 50, 100)
    assert score(tmp_path, "official", video)["FA"] == percent(1 / 3)


def test_long_videos_and_rare_classes(tmp_path: Path) -> None:
    """A dog video of 1 second, right, and a cat video of 3 seconds, called dog.

    Fixed pools frames: 1/4. Paper: video by video, then class by class: (1 + 0) / 2. HOTA: dog 1 hit and 3 false
    alarms, DetA 1/4, AssA 1: 1/2; cat 0; mean 1/4. Official divides by all 3 classes of the set: 1/6.
    """
    videos = (1, [("dog", [A])], [("dog", [A])]), (3, [("cat", [A] * 3)], [("dog", [A] * 3)])
    fixed = score(tmp_path, "fixed", *videos)
    assert (fixed["FA"], fixed["HOTA"]) == (25, 25)
    paper = score(tmp_path, "paper", *videos)
    assert (paper["FA"], paper["HOTA"]) == (50, 25)
    official = score(tmp_path, "official", *videos)
    assert (official["FA"], official["HOTA"]) == (25, percent(1 / 6))
