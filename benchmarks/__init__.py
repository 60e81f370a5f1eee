"""Benchmarks: `make bench`, or `python -m benchmarks [NAME…]`. Ratios within one run, as a table and as JSON."""
