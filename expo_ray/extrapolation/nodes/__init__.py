"""Shards on many nodes: what fits where, tasks on Ray, and the trial load of the result.

Only `fanout` imports Ray.
"""
