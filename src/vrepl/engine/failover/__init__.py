"""Failover: looks at a replica, asks the planner, saves what it says and does it, until there is nothing left to do."""
