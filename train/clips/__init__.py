"""Clips: places cut from rasters, split without leaks, read as samples; no torch in here."""
