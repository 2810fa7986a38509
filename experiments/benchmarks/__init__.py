"""Shared by the benchmarks: timing, baselines, cases and reports."""
