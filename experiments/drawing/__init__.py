"""Charts as SVG, independent of runs."""
