"""What every part uses: random streams, statistics of texts, files of lines, the fastest precision."""
