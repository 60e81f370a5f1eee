"""Runs plans: the only room that orders side effects. `run.Engine` is the way in, for what moves disks."""
