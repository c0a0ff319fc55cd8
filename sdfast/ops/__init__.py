"""Operators of transformers, and losses: they need torch alone, and use the compiled core and Triton where these are."""
