"""The record of how weights came to be: a statement beside each checkpoint and each export, signed with a key."""
