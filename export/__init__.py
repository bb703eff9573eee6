"""Checkpoint → artifact: ONNX files that `deeplight.engine` runs, with parity proven."""
