"""Handing on what a run made: the Hub, and other people's formats."""
