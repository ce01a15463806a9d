"""Weights of models: read from checkpoints and Hugging Face folders on any layout, and written for other programs."""
