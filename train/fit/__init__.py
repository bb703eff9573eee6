"""Training: settings, samples into batches, objective, stages, loop, checkpoints."""
