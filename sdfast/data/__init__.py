"""Data: sources (folders, tables, Hugging Face data sets, IDX) -> one decoded-once pack -> rows, masks and order."""
