"""Students and how they learn: one file per algorithm. Import what you need from its own module."""
