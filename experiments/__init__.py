"""The mains: each parses flags, makes one call into `gr.runs` and prints the result."""
