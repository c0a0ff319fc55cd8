"""A step whose loss was not finite, run again under observation: what was wrong first, and what helps."""
