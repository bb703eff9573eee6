"""One inference run: what is asked, tiling, the flow of tiles, and what it reports."""
