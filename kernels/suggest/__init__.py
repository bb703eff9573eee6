"""The lights that the auxiliary layers suggest, computed pixel by pixel."""
