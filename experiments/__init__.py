"""The mains: each parses flags, makes one call into `gr.runs` and prints what is worth telling."""
