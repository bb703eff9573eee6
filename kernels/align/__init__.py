"""Raw pixels on their own grid → normalised features on the HR grid, moved by the offset field."""
