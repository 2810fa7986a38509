"""Experiments: one file each, its command line and expected numbers in its docstring."""
