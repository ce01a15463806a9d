"""Numbered samples, and which of them a rank gets."""
