"""Loaders of human-rated sets from files; their data is not in this package."""
