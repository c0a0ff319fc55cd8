"""What leaves a run: models as files for other programs, and on the Hugging Face hub."""
