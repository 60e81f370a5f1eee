"""HotAdd without VDDK: disks that the control process attached to this machine, read and written as block devices."""
