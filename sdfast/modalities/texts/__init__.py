"""Texts: a RoBERTa or BERT with a masked language model."""
