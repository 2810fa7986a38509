"""What the benchmarks share: timing, baselines, cases and reports."""
