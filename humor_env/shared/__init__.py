"""Shared utilities: random streams, text statistics, JSON-lines files, the fastest precision."""
