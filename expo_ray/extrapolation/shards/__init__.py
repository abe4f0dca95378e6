"""One shard's work: its task, the chunks of its tensors, its file and its receipt.

Runs the same in this process and on any node.
"""
