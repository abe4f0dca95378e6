"""What is to be written: alphas, the rules that spread them, the files of the output and its cost.

Decided from headers, before a byte is written.
"""
