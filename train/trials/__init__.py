"""Experiments: the ablation, and trials on real places."""
