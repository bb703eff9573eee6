"""Output pixels made of radiance: the halo is cut off, values become steps of uint16 or nodata."""
