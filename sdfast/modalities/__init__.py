"""What a run is trained on: images or texts, and what that decides."""
