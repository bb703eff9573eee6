"""How far suggested lights lie from those that are seen: window sums over shifts, and the mean shift."""
