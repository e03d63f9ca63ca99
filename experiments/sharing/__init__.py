"""Sharing a run's results: the Hub, and other formats."""

# The instruction in other frameworks' evaluations, the same in all of them.
INSTRUCTION = "Say what the sentence says as one funny sentence. Answer with that sentence and nothing else."
