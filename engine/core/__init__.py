"""Everybody's foundation: errors, spec, windows, files, machine, terminal, progress."""
