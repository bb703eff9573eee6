"""The last refinement with the base below it: coarse maps are enlarged where they are used."""
