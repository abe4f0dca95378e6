"""The stages of a whole run: recipe, run directory, resume."""
