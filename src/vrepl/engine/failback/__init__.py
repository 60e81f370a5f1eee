"""Failback: what ran at the target comes home, into the original or a new VM; undoable until it is committed."""
