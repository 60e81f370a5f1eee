"""Runs plans: the only room that orders side effects. `run.Engine` is the way in."""

from __future__ import annotations

from vrepl.engine.context import Services
from vrepl.engine.events import EngineEvents, SilentEvents
from vrepl.engine.run import Engine

__all__ = ["Engine", "EngineEvents", "Services", "SilentEvents"]
