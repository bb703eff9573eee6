"""The same job through the tools that a user would pick instead; see docs/bench.md."""
