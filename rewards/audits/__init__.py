"""Tests of a critic: agreement with people, known hacks, injected instructions, measures of puns."""
