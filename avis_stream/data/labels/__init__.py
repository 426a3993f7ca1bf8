"""Labels of other tools: read into videos with tracks, written for correction there."""
