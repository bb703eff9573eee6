"""Metrics, tables and pages of a model beside its baselines."""
