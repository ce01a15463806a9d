"""The update of the parameters: gradient norm and clipping, optimizers, learning rate and optimizer state."""
