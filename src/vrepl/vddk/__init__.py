"""The only place that knows libvixDiskLib: its ABI, owning objects over it, and the data mover process."""
