"""Radiance made to agree with what the sensor saw."""
