"""The page to look at a map with: one file, no network."""
