"""The documentation is run: commands, docstring examples and example scripts."""
