"""The mains: each parses flags, builds from a config (`experiments.build`) and calls `gr`."""
