"""Auxiliary-to-main fusion of the modalities' features."""
