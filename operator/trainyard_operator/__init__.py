"""The kopf operator that turns a TrainingJob into a group of worker pods."""
