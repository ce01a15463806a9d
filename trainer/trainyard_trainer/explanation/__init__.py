"""Explanations of predictions by attribution (Captum): which inputs decide, of a table and of a text."""
