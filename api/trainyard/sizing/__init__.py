"""What a rank of the built-in trainer needs and sends, from the configuration alone, and whether it fits."""
