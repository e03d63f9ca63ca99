"""How a critic is examined: agreement with people, known hacks, injected instructions, measures of puns."""
