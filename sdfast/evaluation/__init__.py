"""How good a fine-tuned model is."""
