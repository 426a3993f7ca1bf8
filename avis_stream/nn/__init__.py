"""Small layers without knowledge of audio-visual segmentation."""
