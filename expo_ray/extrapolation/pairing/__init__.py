"""Whether two checkpoints are a pair, and which tensors and rows of them belong together.

From headers and tokenizers alone; no weight is read, and nothing here knows an alpha.
"""
