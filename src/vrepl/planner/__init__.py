"""Deciding, apart from doing: source state + replica state + repository -> a plan, or a typed conflict. Pure."""
