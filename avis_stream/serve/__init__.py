"""A page to watch a session on, and its results for programs."""
