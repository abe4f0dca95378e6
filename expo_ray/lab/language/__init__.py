"""The laboratory of a real language model: SmolLM2-135M-Instruct, and preferences of known truth.

A pair is trained by DPO on answers that keep, or do not keep, to what their prompts ask of the
form; whether they do, a rule tells.
"""
