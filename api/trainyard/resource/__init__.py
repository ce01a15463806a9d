"""Types of the TrainingJob resource: spec, status, and the validation rules between their fields."""
