"""Stacks: the lights of several dates over one place, with the same layers beside them."""
