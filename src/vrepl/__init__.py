"""Replicates VMware vSphere virtual machines from one site to another through VDDK."""

from __future__ import annotations

__version__ = "0.1.0"
