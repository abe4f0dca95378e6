"""Tensors that are computed while they are read: a LoRA adapter on its base, FP8 blocks."""
