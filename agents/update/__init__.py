"""How one optimiser step is taken, and the sessions that give learners from scores and from pairs their loop."""
