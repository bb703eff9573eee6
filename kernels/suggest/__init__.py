"""The lights that the auxiliary suggests, pixel by pixel."""
