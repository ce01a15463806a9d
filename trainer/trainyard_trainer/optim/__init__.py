"""From a gradient to new parameters."""
