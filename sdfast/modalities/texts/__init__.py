"""Texts: a BERT or one of its kin with a masked language model."""
