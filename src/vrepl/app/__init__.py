"""Composition: from configuration to sites, data movers, repository and engine."""
