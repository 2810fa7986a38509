"""The whole experiment as functions."""
