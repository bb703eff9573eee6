"""The offset between suggested and observed lights, estimated from window sums of all shifts."""
