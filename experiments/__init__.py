"""The mains: each parses flags, makes one call into `gr.runs` and prints the result."""

from experiments.huge_pages import restart_main

restart_main()  # Before a main's imports, which take seconds.
