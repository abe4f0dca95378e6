"""The output folder: who may write into it, what becomes of the shards, what is told of them."""
