"""Loaders of sets that people rated, by file; none of their data is in this package."""
