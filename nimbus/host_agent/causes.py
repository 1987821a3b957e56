"""Which error of several counts, and what a person is told of one that is the kernel's."""

from __future__ import annotations

import structlog

from nimbus.model.errors import HostFault, NimbusError

log = structlog.get_logger()


def first_error(group: BaseExceptionGroup[NimbusError]) -> NimbusError:
    """The one that counts: errors of one VM that come together have one cause."""
    inner = group.exceptions[0]
    return first_error(inner) if isinstance(inner, BaseExceptionGroup) else inner


def name_fault(group: BaseExceptionGroup[NimbusError | OSError]) -> NimbusError:
    """What counts of it: ours before the kernel's. Whatever a kernel would not do for this VM, its neighbours live."""
    ours, rest = group.split(NimbusError)
    if ours is not None:
        return first_error(ours)
    assert rest is not None  # noqa: S101 - a group holds something
    log.error("vm.host_refused", exc_info=rest)
    return HostFault(f"this host refused: {_only(rest)}")


def _only(group: BaseExceptionGroup[NimbusError | OSError]) -> str:
    inner = group.exceptions[0]
    if isinstance(inner, BaseExceptionGroup):
        return _only(inner)
    return (inner.strerror if isinstance(inner, OSError) else None) or type(inner).__name__
