"""Controlled experiments, `expo-ray lab NAME`: one record each, in `registry.EXPERIMENTS`."""
