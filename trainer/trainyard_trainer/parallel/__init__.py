"""How a model is spread over the ranks, and how a step runs through it."""
