"""What seconds say about each other: who sounded a moment ago probably still does.

A chain of two states, sounding and silent, which stay as they are from one second to the next with chance `stay`
(hidden Markov model; Rabiner, 1989). Each second brings evidence, the sounding head's log-odds. A stream filters, it
can only look back; a clip smooths, it looks both ways. With `stay` 0.5 both leave every second as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 8.0
"""Log-odds beyond which nothing is believed: no second is so sure that the next ones could not change it."""


def log_odds(chance: Tensor) -> Tensor:
    """Evidence of chances in [0, 1], within `MOST`."""
    return torch.logit(chance.float(), eps=1e-6).clamp(-MOST, MOST)


def carried(odds: Tensor, stay: float, seconds: float | Tensor = 1.0) -> Tensor:
    """Log-odds of sounding so many seconds after they were `odds`, before anything is heard."""
    drift = (2 * stay - 1) ** torch.as_tensor(seconds, dtype=torch.float64)
    chance = 0.5 + drift * (odds.double().sigmoid() - 0.5)
    return torch.logit(chance).clamp(-MOST, MOST).to(odds.dtype)


def smoothed(evidence: Tensor, stay: float, seconds: float = 1.0) -> Tensor:
    """Chance of sounding in each frame of a clip, given all of them.

    Args:
        evidence: Log-odds [M, T]; 0 where nothing is known.
        stay: In [0.5, 1), for a second.
        seconds: From one frame to the next.
    Returns:
        float [M, T], in [0, 1].
    """
    before, after = torch.zeros_like(evidence), torch.zeros_like(evidence)
    for t in range(1, evidence.shape[1]):
        before[:, t] = carried(before[:, t - 1] + evidence[:, t - 1], stay, seconds)
        after[:, -1 - t] = carried(after[:, -t] + evidence[:, -t], stay, seconds)
    return (before + evidence + after).sigmoid()
