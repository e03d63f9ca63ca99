"""One HTML page about a run, several runs or a benchmark."""
