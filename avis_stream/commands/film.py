"""The overlay at camera rate: what was found once a second, drawn again on every picture in between."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from avis_stream.models.avism import AVISM
from avis_stream.models.clip import ClipResult
from avis_stream.online.looking import Eye
from avis_stream.online.seeing import draw
from avis_stream.sources.clip import Clip
from avis_stream.stream.lanes import beside, shares_of
from avis_stream.types import NANOSECONDS, AVPair, OnlineResult


def drawn_again(model: AVISM, film: Clip, result: ClipResult, fps: float) -> Iterator[tuple[AVPair, OnlineResult]]:
    """Each picture of a film with the masks of the instances that sound at that moment, so that masks follow motion.

    A picture costs the backbone and the pixel decoder; a mask is its instance's embedding times the picture's features.
    Pictures are worked on beside each other (ADR 0304).

    Args:
        model: Prepared for inference; the one that made `result`.
        film: The recording at the rate of its camera.
        result: With `mask_embed`.
        fps: Rate of the frames that `result` speaks of: what sounds in frame k sounds from k / fps on.
    """
    assert result.mask_embed is not None
    mask_embed = result.mask_embed
    eye = Eye(model, None, model.config.input.for_clips())
    sizes = eye.sizes((film.height, film.width))
    sounding = [result.sounding(k) for k in range(result.frames)]
    count, one_piece = len(result), model.config.postprocess.one_piece

    @torch.no_grad()
    def drawn(pair: AVPair) -> tuple[AVPair, OnlineResult]:
        k = min(int(pair.frame.pts_ns * fps / NANOSECONDS + 1e-6), result.frames - 1)
        sounds = sounding[k]
        mask, box = torch.zeros(count, *sizes.output, dtype=torch.bool), torch.zeros(count, 4)
        if sounds.any():
            features = eye.features_of(pair.frame.image)
            embed = mask_embed if mask_embed.dim() == 2 else mask_embed[:, k]
            mask[sounds], box[sounds] = draw(embed[sounds], features, sizes, one_piece=one_piece)
        return pair, OnlineResult(
            pts_ns=pair.frame.pts_ns,
            frame_id=pair.frame.frame_id,
            track_id=torch.arange(1, count + 1),
            class_id=result.class_id,
            score=result.score,
            sounding=sounds & mask.flatten(1).any(dim=1),
            mask=mask,
            box=box,
        )

    threads = torch.get_num_threads()
    yield from beside(drawn, film, shares_of(threads) if model.device.type == "cpu" else (threads,))
