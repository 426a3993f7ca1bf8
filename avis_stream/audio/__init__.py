"""Sound to vectors: resampling, spectrograms, encoders."""
