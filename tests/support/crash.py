"""Dying at any step: every call that changes a file is counted, and from the chosen one on none takes effect.

A write that death meets may be torn: half of it gets through. Syncs cost nothing here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

CHANGING = ("pwrite", "fsync", "fdatasync", "replace", "link", "unlink", "ftruncate", "mkdir", "rmdir")


class Died(BaseException):
    """Not an Exception: nothing may catch it and go on."""


class Steps:
    """How many changing calls were made; `die_at` is the number of the first that does not take effect."""

    def __init__(self, die_at: int | None, *, tear: bool) -> None:
        self.made: list[str] = []
        self.die_at = die_at
        self.tear = tear
        self._thread = threading.get_ident()
        """Only this thread dies: others (the test runner's own) go on."""

    @property
    def died(self) -> bool:
        return self.die_at is not None and len(self.made) > self.die_at

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if threading.get_ident() != self._thread:
                return real(*arguments, **keywords)
            if self.died:
                raise Died
            self.made.append(name)
            if self.died:
                if self.tear and name == "pwrite":
                    descriptor, data, offset = arguments
                    real(descriptor, bytes(data)[: len(data) // 2], offset)
                raise Died
            return None if name in {"fsync", "fdatasync"} else real(*arguments, **keywords)

        return call


@contextmanager
def dying(die_at: int | None = None, *, tear: bool = True) -> Iterator[Steps]:
    """For the block; swallows `Died`. None: only count."""
    steps = Steps(die_at, tear=tear)
    patches = [mock.patch.object(os, name, steps.wrap(name, getattr(os, name))) for name in CHANGING]
    for patch in patches:
        patch.start()
    try:
        yield steps
    except Died:
        pass
    finally:
        for patch in patches:
            patch.stop()
