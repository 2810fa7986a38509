"""The mains: each parses flags, builds from a config (`gr.runs.build`) and calls `gr`."""

from experiments.huge_pages import restart_main

restart_main()  # Before JAX is imported; nothing but the mains themselves is started again.
