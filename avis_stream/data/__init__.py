"""Data sets and masks on disk."""
