"""Charts as SVG. Knows nothing of runs."""
