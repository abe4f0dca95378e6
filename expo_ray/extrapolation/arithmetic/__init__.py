"""The formula on tensors that lie in memory, its transforms, and the statistics of what came out.

No file, no plan, no Ray: arrays in, arrays out.
"""
