"""Training: targets, matching, losses, and the loop."""
