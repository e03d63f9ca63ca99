"""A critic's card: what it agrees with, what it can be fooled by, and where it fails."""
