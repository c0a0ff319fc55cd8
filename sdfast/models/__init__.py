"""ViT models: the lean modules, Hugging Face and timm checkpoints in, Hugging Face folders out."""
