"""The agent's way to a template: none is handed out before every byte of it was read and compared.

That costs as much as reading a guest's memory, so a template is read once for each process and generation, and again
when any of its files is another than it was. A jailer's hard link moves a file's ctime at each boot and changes nothing
else: where that is all, the last reading counts for REREAD_S, as it does for images (attest.py). Called in threads by
host_agent/snapshots.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nimbus.storage.attest import REREAD_S
from nimbus.storage.templatefolder import Marks, read_marks
from nimbus.storage.templates import DamagedTemplate, OnRead, Template, TemplateStore


class VerifiedTemplates:
    """Which templates of a store this process has found sound."""

    def __init__(self, store: TemplateStore, now_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now_s = now_s
        self._seen: dict[str, tuple[Marks, float]] = {}  # and when that was
        self._reading = threading.Lock()  # machines that start together read a template once, not once each

    def find(self, digest: str, on_read: OnRead | None = None) -> Template | None:
        """The template of that digest, verified; None where there is none and the boot is cold.

        Raises DamagedTemplate after it has set the template aside: the boot is cold, and an operator should know why.
        """
        try:
            template = self._store.find(digest)
            if template is not None and not self._is_seen(template):
                with self._reading:
                    self._read(template, on_read)
        except DamagedTemplate as damage:
            self._seen.pop(digest, None)
            if not self._store.quarantine(digest, damage.what, generation=damage.generation):
                return None  # removed, or built again, while we looked: no damage
            raise
        return template

    def _read(self, template: Template, on_read: OnRead | None) -> None:
        if self._is_seen(template):  # while we waited for our turn
            return
        before = read_marks(template)  # what changes while it is read is read again
        self._store.verify(template, on_read)
        self._seen[template.digest] = (before, self._now_s())

    def _is_seen(self, template: Template) -> bool:
        if template.digest not in self._seen:
            return False
        marks, read_at = self._seen[template.digest]
        now = read_marks(template)
        is_recent = self._now_s() - read_at < REREAD_S
        return now.identity == marks.identity and (now.ctimes == marks.ctimes or is_recent)
