"""Parts of the environments: the rules of an episode, the token table, the state of critics with a memory."""
