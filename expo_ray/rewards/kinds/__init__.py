"""Kinds of reward models: one record each, all of them in `registry`."""
