"""Benchmarks: ``pytest bench/ --benchmark``. See README.md here."""
