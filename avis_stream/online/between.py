"""Between two steps: who sounds now, told by the newest second of sound and the frame queries of the last step.

A step comes once a second, a sound begins whenever it likes. What the sounding head is asked at a step, of each frame
query and the second of sound that ends there, it can be asked again of the same queries and the second that ends now.
That one covers a part of the step's; the rest of the step's counts as heard before. So right after a step nothing
changes, and where the next one is due its own evidence would meet the same odds. Source: ADR 0203.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avis_stream.config import AVISMConfig
from avis_stream.models.sounding_chain import MOST, carried, log_odds
from avis_stream.online.config import OnlineConfig
from avis_stream.online.identity_table import IdentityTable
from avis_stream.online.looking import Seen
from avis_stream.online.state import LastQueries, StreamBody
from avis_stream.types import NANOSECONDS


def last_queries(config: AVISMConfig, online: OnlineConfig, like: Tensor) -> LastQueries | None:
    """Room for the frame queries of a step, on the device of `like`.

    None where they cannot be asked again: frame queries must be the objects, a sounding head must tell of them, and the
    last step must have been about the last frame (`alignment="live"`).
    """
    own = config.localizer
    if config.tracker.objects != "frame" or not own.sounding_head or online.alignment != "live":
        return None
    return LastQueries(
        queries=like.new_zeros(own.queries, config.channels),
        logits=like.new_zeros(own.queries, len(config.classes) + 1),
        mask_embed=like.new_zeros(own.queries, config.drawn_channels),
    )


def keep_queries(last: LastQueries, seen: Seen, pts_ns: int) -> None:
    """Takes in those of a step, about the frame of that time."""
    assert seen.answer.logits is not None
    assert seen.answer.mask_embed is not None
    last.queries.copy_(seen.arrival.frame_queries[-1])
    last.logits.copy_(seen.answer.logits)
    last.mask_embed.copy_(seen.answer.mask_embed)
    last.pts_ns = pts_ns


def can_be_asked(body: StreamBody, pts_ns: int) -> bool:
    """Whether there are frame queries of the last step, for a frame that is not older."""
    last = body.last_queries
    return last is not None and last.pts_ns is not None and last.pts_ns == body.last_pts_ns and pts_ns >= last.pts_ns


def odds_between(table: IdentityTable, chance: Tensor, stay: float, hop: float, last_ns: int, now_ns: int) -> Tensor:
    """Log-odds float32 [N] of sounding now, of each identity that the last step saw; -inf of all others.

    Args:
        table: As the last step left it.
        chance: [Q], of the last step's frame queries to sound in the second that ends now.
        stay: As `PostprocessConfig.sounding_stay`.
        hop: Seconds from one step to the next. In shorter ones than a second steps count what their seconds share
            twice, and so does this by the time of the next.
        last_ns: Time of the last step.
        now_ns: Not earlier.
    """
    seconds = (now_ns - last_ns) / NANOSECONDS
    before = (table.expected + min(1.0, seconds / min(1.0, hop)) * table.heard).clamp(-MOST, MOST)
    odds = carried(before, stay, seconds) + log_odds(chance.cpu())[table.token_slot]
    return torch.where(table.seen_ns == last_ns, odds.clamp(-MOST, MOST), -math.inf)
