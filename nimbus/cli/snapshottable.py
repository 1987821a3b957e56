"""Snapshot templates as an operator sees them: their states, what calls for an act, and one line for each.

Called by nimbus.cli.snapshots and snapshotbuild; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import trio

from nimbus.cli.tables import cell
from nimbus.host_agent.settings import HostSettings, find_host, plan_layout
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.model.errors import HostFault, NotFound, Refused
from nimbus.storage.content import ImageStore
from nimbus.storage.images import resolve_image
from nimbus.storage.templates import BUILD_COMMAND, DamagedTemplate, Template, TemplateStore

HEAD = ("TEMPLATE", "STATE", "IMAGE", "VMM", "CPUS", "MEMORY", "TOUCHED", "CREATED", "WHY")
MIB = 1 << 20
Differences = Callable[[Template], tuple[str, ...]]
_SHORT_DIGITS = 12
_MIN_DIGITS = 4  # fewer name a template by accident


@dataclass(frozen=True)
class Entry:
    """One template, or what is left of one."""

    digest: str
    state: str
    template: Template | None = None
    why: tuple[str, ...] = ()
    at: float = 0.0  # Unix seconds of its making, or of its setting aside; 0 where nobody knows

    @property
    def short(self) -> str:
        """As much of the digest as people need."""
        return shorten(self.digest)


def shorten(digest: str) -> str:
    """As much of a digest as people need."""
    return digest[:_SHORT_DIGITS]


def find_entries(store: TemplateStore, differences: Differences) -> Iterator[Entry]:
    """All templates of the store with their states: the sound ones newest first, then the others."""
    sound, damaged = [], []
    for digest in store.digests():
        try:
            template = store.find(digest)
        except DamagedTemplate as damage:
            damaged.append(Entry(digest, "damaged", why=(damage.what,)))
            continue
        if template is not None:
            why = differences(template)
            sound.append(Entry(digest, "stale" if why else "ready", template, why, template.created_at))
    yield from sorted(sound, key=lambda entry: entry.at, reverse=True)
    yield from damaged
    yield from (Entry(one.digest, "quarantined", why=(one.why,), at=one.at) for one in store.quarantined())


def find_differences(settings: HostSettings) -> Differences:
    """Tells what of the image, the host and its VMM is another than when a template was built, as a boot would.

    Asks the host at the first template: where there is none, it need not be able to run a VM.
    """
    images = ImageStore(plan_layout(settings).images)
    found: list[Templates] = []

    def tell(template: Template) -> tuple[str, ...]:
        try:
            if not found:
                host = find_host(settings)
                found.append(Templates(host.layout, host.choice))
            image = resolve_image(
                images, template.key.image, kernel=settings.kernel_image, rootfs=settings.rootfs_image
            )
            return template.key.differences(trio.run(found[0].key, image, template.shape))
        except (NotFound, HostFault) as error:
            return (str(error),)

    return tell


def pick(digests: Iterable[str], prefix: str) -> str:
    """The one digest that begins so. Raises NotFound or Refused."""
    if len(prefix) < _MIN_DIGITS:
        raise Refused(f"{prefix!r} is too short: at least {_MIN_DIGITS} digits name a snapshot template")
    found = [digest for digest in digests if digest.startswith(prefix)]
    if not found:
        raise NotFound(f"no snapshot template begins with {cell(prefix)}; `nimbus snapshots list` shows them")
    if len(found) > 1:
        raise Refused(f"{len(found)} snapshot templates begin with {prefix}: say more digits")
    return found[0]


def describe(entry: Entry) -> dict[str, object]:
    """The JSON of one template."""
    told: dict[str, object] = {"digest": entry.digest, "state": entry.state, "why": list(entry.why)}
    template = entry.template
    if template is None:
        return told | {"at": entry.at or None}
    sizes = {name: asdict(blob) for name, blob in template.files.items()}
    return told | {
        "created_at": template.created_at,
        "touched_bytes": template.touched_bytes,
        "folder": str(template.folder),
        "files": sizes,
        "key": asdict(template.key),
    }


def advise(entries: Iterable[Entry]) -> list[str]:
    """What to do about the states that call for something."""
    seen = {entry.digest: entry.state for entry in reversed(list(entries))}  # what was built again is no more aside
    advice = {
        "stale": f"stale: `{BUILD_COMMAND}` makes one that fits; `nimbus snapshots gc` removes the older ones",
        "damaged": f"damaged: `nimbus snapshots remove TEMPLATE`, then `{BUILD_COMMAND}`",
        "quarantined": f"quarantined: machines boot cold until `{BUILD_COMMAND}` has made another",
    }
    return ["", *told] if (told := [line for state, line in advice.items() if state in seen.values()]) else []


def rebuild_command(template: Template | None) -> str:
    """The command that makes the same again, where it can be told."""
    if template is None:
        return BUILD_COMMAND
    shape = template.shape
    return (
        f"{BUILD_COMMAND} --image {cell(template.key.image)} --cpus {shape.cpus} --memory {shape.mem_mib}M "
        f"--disk {shape.disk_mib}M"
    )


def cells(entry: Entry) -> tuple[str, ...]:
    """The line of one, under HEAD."""
    short, why = entry.short, cell("; ".join(entry.why))
    template = entry.template
    if template is None:
        return (short, entry.state, "", "", "", "", "", moment(entry.at), why)
    return (
        short,
        entry.state,
        cell(template.key.image),
        cell(f"{template.key.backend}-{template.key.accel}"),
        str(template.shape.cpus),
        f"{template.shape.mem_mib} MiB",
        f"{template.touched_bytes / MIB:.0f} MiB",
        moment(template.created_at),
        why,
    )


def moment(at: float) -> str:
    """A time for people; nothing for an unknown one."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else ""
