"""One colour per identity, the same in every output."""

from __future__ import annotations

# Sixteen sRGB colours of middle lightness, so that they show on dark and on light pictures. Each is the one farthest
# from all before it in OKLab, seen by normal and by red-green colour-blind eyes together.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (248, 160, 24),
    (0, 136, 248),
    (0, 240, 248),
    (248, 120, 232),
    (0, 160, 96),
    (232, 64, 80),
    (168, 240, 80),
    (160, 112, 184),
    (0, 184, 208),
    (176, 128, 40),
    (144, 192, 112),
    (240, 136, 144),
    (160, 160, 248),
    (248, 176, 240),
    (224, 80, 168),
    (248, 208, 120),
)


def identity_color(track_id: int) -> tuple[int, int, int]:
    """Red, green, blue of an identity, 0 to 255. It depends on nothing but the id, so it never changes."""
    return PALETTE[(track_id - 1) % len(PALETTE)]


def text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Near black or white, whichever reads better on the background (WCAG contrast)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (16, 16, 16) if (luminance + 0.05) / 0.055 > 1.05 / (luminance + 0.05) else (255, 255, 255)
