"""Benchmarks on a GPU, by section and within a time limit; see gpu.sh beside this folder."""
