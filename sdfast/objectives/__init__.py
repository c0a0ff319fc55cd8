"""What is minimised: masked auto-encoding, self-distillation, classification."""
