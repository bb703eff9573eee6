"""Output pixels: halo cut off, steps of uint16, nodata."""
