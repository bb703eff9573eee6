"""Rasters out: packs, parts, the finished COG, pictures and catalogue items."""
