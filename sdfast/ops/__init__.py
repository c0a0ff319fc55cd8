"""Operators of transformers, and losses: torch alone, with the compiled core and Triton used where these are there."""
