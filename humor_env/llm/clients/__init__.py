"""The clients, one file for each service, and what they share: addresses, retries, limits, the background loop."""
