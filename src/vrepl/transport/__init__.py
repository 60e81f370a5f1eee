"""Disks as streams of extents: the reader and writer Protocols, what implements them, and the one copy pipeline."""
