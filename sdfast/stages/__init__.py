"""Stages as data, what decides the result of each, how one is trained, and how it is brought up to date."""
