"""Proxies: the machines that run data movers, and what each of them can reach."""
