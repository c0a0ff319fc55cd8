"""Images: a ViT with a masked auto-encoder."""
