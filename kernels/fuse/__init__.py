"""Auxiliary-to-main fusion: the features of the modalities modulate those of the lights."""
