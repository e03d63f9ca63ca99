"""Sharing what a run made: the Hub, and other people's formats."""

# What a model is asked in other people's evaluations, in the same words in all of them.
INSTRUCTION = "Say what the sentence says as one funny sentence. Answer with that sentence and nothing else."
