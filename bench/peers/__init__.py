"""The same job with the tools that a user might choose instead; see docs/bench.md."""
