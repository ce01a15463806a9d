"""The TrainingJob resource as its types have it: spec, status, and the rules between fields."""
