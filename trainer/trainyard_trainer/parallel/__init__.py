"""How a model is divided among the ranks, and the forward and backward passes of a step."""
