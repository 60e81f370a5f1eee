"""The byte stream between two movers: framed, acknowledged, compressed where it pays; a disk at its far end."""
