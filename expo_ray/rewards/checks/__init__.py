"""Checks: answers that are right or wrong by a rule; one record per kind, all in `registry`."""
