"""Settings that suit a model."""

from __future__ import annotations

from dataclasses import replace

from small_model import small_model

from avis_stream.online import OnlineConfig
from avis_stream.online.segmenter import OnlineSegmenter
from avis_stream.presets import preset


def test_a_model_that_tells_who_sounds_has_its_own_thresholds() -> None:
    config = preset("avism_mini").with_overrides(["postprocess.score_threshold=0.4", "postprocess.duplicate_iou=0.6"])
    own = OnlineConfig.of(config, hop_seconds=0.5)
    assert (own.birth_score, own.duplicate_iou, own.hop_seconds) == (0.4, 0.6, 0.5)
    assert 0.1 < own.candidate_score < own.show_score < 0.4, "what is known may go on where nothing could begin"
    assert OnlineConfig.of(config, show_score=0.7).show_score == 0.7


def test_others_have_the_defaults() -> None:
    assert OnlineConfig.of(preset("avism_r50_in")) == OnlineConfig()
    assert OnlineConfig.of(preset("avism_r50_in"), hop_seconds=2.0) == replace(OnlineConfig(), hop_seconds=2.0)


def test_a_segmenter_takes_them_unless_told_otherwise() -> None:
    model = small_model()
    assert OnlineSegmenter(model).config == OnlineConfig.of(model.config)
    assert OnlineSegmenter(model, OnlineConfig()).config == OnlineConfig()
