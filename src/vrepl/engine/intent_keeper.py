"""The intent of the running run: what it is about to do, on disk before it does it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from vrepl.repository.intent import DiskIntent, HotAddedDisks, Intent


class IntentStore(Protocol):
    """Where the intent lies."""

    def save_intent(self, intent: Intent) -> None:
        """Durable before it returns."""
        ...


class IntentKeeper:
    """The intent of the running run; disks in transfer side by side change it through here, each change durable."""

    def __init__(self, store: IntentStore, intent: Intent) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.intent = intent

    def change(self, edit: Callable[[Intent], Intent]) -> None:
        with self._lock:
            changed = edit(self.intent)
            self._store.save_intent(changed)
            self.intent = changed

    def set_disk(self, disk: DiskIntent) -> None:
        self.change(
            lambda intent: replace(
                intent,
                disks=(*(one for one in intent.disks if one.source_key != disk.source_key), disk),
            )
        )

    def note_hotadd(self, entry: HotAddedDisks) -> None:
        """These disks may hang on their proxy from now on, until `forget_hotadd`."""
        with self._lock:
            known = entry in self.intent.journal.hotadd_cleanup
        if not known:
            self._change_hotadd(lambda entries: tuple(dict.fromkeys((*entries, entry))))

    def forget_hotadd(self, entry: HotAddedDisks) -> None:
        """What hung on the proxy has been detached."""
        self._change_hotadd(lambda entries: tuple(one for one in entries if one != entry))

    def _change_hotadd(self, edit: Callable[[tuple[HotAddedDisks, ...]], tuple[HotAddedDisks, ...]]) -> None:
        self.change(
            lambda intent: replace(
                intent, journal=replace(intent.journal, hotadd_cleanup=edit(intent.journal.hotadd_cleanup))
            )
        )
