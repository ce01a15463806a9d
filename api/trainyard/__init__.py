"""The TrainingJob resource: types, defaults, admission checks and the CRD generator."""
