"""Alignment: raw pixels on their own grid become normalised features on the HR grid, moved by the offset field."""
