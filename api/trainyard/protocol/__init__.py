"""What operator and worker share: constants, the launcher and its HTTP interface, termination messages."""
