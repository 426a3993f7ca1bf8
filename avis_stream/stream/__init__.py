"""From live sources to results: alignment of sound and picture, what may be dropped, and the session that runs it."""
