"""Differentially private training: bounded gradients of single samples, noise, and the account of the budget."""
