"""NBD and NBDSSL spoken by vrepl itself, without VDDK: one disk engine. docs/engines.md says where it comes from."""
