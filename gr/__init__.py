"""Constrained generative retrieval and recommendation in JAX and Flax NNX.

The rooms, in the order in which data moves through them (a module imports only from rooms above its own):
`data`, `semantic_ids`, `trie`, `models`, `decoding`, `losses`, `training`, `evaluation`.
"""
