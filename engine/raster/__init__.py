"""Rasters in: opened safely, their pixels in physical units, resampled onto the HR grid."""
