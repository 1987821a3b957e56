"""What an operator sets for this host, read once in `main` and handed on as small values.

`HostSettings` is enough for `nimbus run`; the agent adds its control plane. Names are those of the
documents. Nothing below `main` and the CLI sees these classes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from nimbus.host import cgroup, native
from nimbus.host.blockdevice import find_disk
from nimbus.host.kvm import find_kvm
from nimbus.host.roots import claim_root
from nimbus.host_agent.build import Host
from nimbus.host_agent.lane import limit_files
from nimbus.host_agent.placing import AUTO_CORES_MIN, Pinning, Places, Wish, parse_housekeeping, read_places
from nimbus.host_agent.plan import ActLimits, HostLayout
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.host_agent.vmm.choice import Choice, choose_vmm
from nimbus.model.errors import HostFault, Refused
from nimbus.model.vm import HostPort


def default_state_dir() -> Path:
    """`/var/lib/nimbus` for root, the user's own data folder otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/nimbus")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nimbus"


class HostSettings(BaseSettings):
    """Where and how VMs live on this host."""

    model_config = SettingsConfigDict(env_prefix="NIMBUS_", frozen=True, extra="ignore")

    state_dir: Path = Field(default_factory=default_state_dir, description="ledger, VM folders and images")
    runtime_dir: Path = Field(Path("/run/nimbus"), description="slots, shared by all agents of the host")
    vmm: str = Field(
        "auto",
        description="firecracker, qemu, fake or auto: Firecracker where KVM is hardware and it is installed, else QEMU",
    )
    accel: str = Field("auto", description="kvm, tcg (software emulation) or auto: kvm where a guest proves it is real")
    fc_bin: Path | None = Field(
        None, description="Firecracker's binary; unset: /usr/local/bin/firecracker, else the one on PATH"
    )
    jailer_bin: Path | None = Field(None, description="its jailer; unset: /usr/local/bin/jailer, else the one on PATH")
    tap_prefix: str = Field("nimbus", description="the tap in each VM's netns is this with a 0", max_length=14)
    vm_subnet: IPv4Network = Field(IPv4Network("172.30.0.0/16"), description="a /30 of it links each VM's netns")
    vm_slots: int = Field(64, ge=1, le=4096, description="VMs at the same time at most")
    jailer_uid: int = Field(200_000, ge=1000, description="start of the range of uids, one for each VM")
    jailer_gid: int | None = Field(
        None, ge=1000, description="start of the range of gids, one for each VM; unset: that of the uids"
    )
    jailer_chroot_base: Path | None = Field(
        None,
        description="where Firecracker's jailer makes its chroots; unset: `jailer` below the state root, because"
        " what VMs share is hard-linked into them, which needs one filesystem",
    )
    seccomp_filter: Path | None = Field(
        None, description="a compiled filter in place of those in Firecracker's binary; leave it unset in production"
    )
    guest_ports: str = Field("", description="host services guests may reach: PORT=ADDRESS:PORT, comma separated")
    guest_nameserver: IPv4Address | None = Field(
        None, description="DNS server that guests ask through their gateway; unset: the host's own first one"
    )
    kernel_image: Path | None = Field(None, description="a kernel (ELF or bzImage) in place of the image's own")
    rootfs_image: Path | None = Field(None, description="an ext4 file in place of the image's own root")
    host_act_limit: float = Field(
        15.0,
        ge=1,
        le=600,
        description="seconds that an act on this host (a network, a disk, a record) may take; then it counts as hung",
    )
    vm_shutdown_grace: float = Field(30.0, ge=0, description="seconds between SIGTERM and SIGKILL in the guest")
    snapshot_boot: bool = Field(
        True, description="boot from a template where there is one for exactly this: `nimbus snapshots build` makes it"
    )
    require_limits: bool = Field(
        False, description="refuse to start where cgroup v2 cannot limit a VM's CPU, memory and processes"
    )
    cpu_pinning: Pinning = Field(
        Pinning.AUTO,
        description="whole cores for each VM and a CPU for each vCPU: on, off, or auto, where the host can and has"
        f" {AUTO_CORES_MIN} cores",
    )
    housekeeping_cpus: str = Field(
        "",
        description="CPUs that pinned VMs never get, as 0-1,8: the agent's and the host's; empty: the first core;"
        " `none`: no CPU",
    )
    vm_io_bps: int | None = Field(None, ge=1, description="bytes a second that a VM may read, and as many it may write")
    vm_io_iops: int | None = Field(None, ge=1, description="the same in operations a second")
    agent_cpu_overcommit: float = Field(1.0, gt=0, le=64, description="vCPUs given out for each CPU of the host")


class KeptBackSettings(HostSettings):
    """What a host keeps for itself: the agent holds to it, and `nimbus doctor` asks without knowing a control plane."""

    disk_reserve_mib: int = Field(
        2048, ge=0, description="disk that stays free below NIMBUS_STATE_DIR: no machine is taken that could need it"
    )


class AgentSettings(KeptBackSettings):
    """What the agent needs beyond its host."""

    agent_id: str = Field(description="unique name of this agent", min_length=1, max_length=128)
    control_plane_url: str = Field(description="base URL of the control plane")
    control_plane_token: SecretStr = Field(description="enrolment token; mint one with `nimbus auth`")
    log_sink_url: str | None = Field(None, description="logging pipeline, in place of what a grant names")
    log_spool_mib: int = Field(
        512, ge=16, description="one VM's output kept while the logging pipeline is away; its oldest lines go first"
    )
    agent_metrics_host: str = Field("127.0.0.1", description="where metrics are served")
    agent_metrics_port: int = Field(9460, ge=0, le=65535)
    job_timeout: float = Field(3600.0, gt=0, description="seconds a job may run at most")
    job_labels: str = Field("nimbus", description="labels whose GitHub jobs this host takes, comma separated")
    pool: str = Field(
        "",
        description="machines kept waiting, by shape (CPUs x MiB of memory x MiB of disk):"
        " `1x256x2048 built=1 prespawned=2 warm=1; 4x8192 warm=1`",
    )
    pool_image: str = Field("base", description="their image")
    pool_ttl: float = Field(3600.0, gt=0, description="seconds that one of them waits at most; then it is made anew")
    agent_lease_retries: int = Field(3, ge=0, description="quick retries of a lease request before the long wait")
    agent_lease_retry_base: float = Field(1.0, gt=0)
    agent_lease_retry_max: float = Field(15.0, gt=0)
    agent_disk_overcommit: float = Field(
        1.0, gt=0, le=64, description="disk promised to VMs, which is sparse, for each MiB that is there for them"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    agent_state_database_url: SecretStr | None = Field(None, description="not used on the host; reported if set")
    agent_redis_url: SecretStr | None = Field(None, description="not used on the host; reported if set")


def parse_labels(text: str) -> tuple[str, ...]:
    """`nimbus,gpu` as values. Raises Refused for none: such a host would be offered every job."""
    labels = tuple(word.strip().lower() for word in text.split(",") if word.strip())
    if not labels:
        raise Refused("NIMBUS_JOB_LABELS: at least one label is needed")
    return labels


def read_settings(kind: type[HostSettings]) -> HostSettings:
    """The settings of this environment. Raises Refused naming every variable that is missing or wrong."""
    try:
        return kind()
    except ValidationError as error:
        lines = [f"NIMBUS_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise Refused("bad settings: " + "; ".join(lines)) from None


def find_layout(settings: HostSettings) -> HostLayout:
    """Where this host's VMs live. Raises Refused for a bad setting, or a state folder whose short name is taken."""
    layout = plan_layout(settings)
    limit_files(settings.host_act_limit)
    claim_root(layout.runtime, layout.root_id, layout.state)
    return layout


def plan_layout(settings: HostSettings) -> HostLayout:
    """The same without taking the short name: for who only looks. Raises Refused for a bad setting."""
    return HostLayout(
        state=settings.state_dir.absolute(),
        runtime=settings.runtime_dir,
        subnet=settings.vm_subnet,
        tap_prefix=settings.tap_prefix,
        host_ports=parse_guest_ports(settings.guest_ports),
        nameserver=settings.guest_nameserver or find_nameserver(Path("/etc/resolv.conf")),
        uid_base=settings.jailer_uid,
        gid_base=settings.jailer_gid,
        jailer_base=settings.jailer_chroot_base.absolute() if settings.jailer_chroot_base else None,
        slot_limit=settings.vm_slots,
        require_limits=settings.require_limits,
        io=find_io_limit(settings),
        limits=ActLimits.within(settings.host_act_limit),
    )


def find_nameserver(resolv_conf: Path) -> IPv4Address | None:
    """The first IPv4 nameserver that this host asks itself; None where it has none.

    One on loopback does as well: guests ask their gateway, and the gateway's rules reach it.
    """
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with suppress(ValueError):
                return IPv4Address(words[1])
    return None


def find_host(settings: HostSettings) -> Host:
    """This host as the rest of the room knows it. Raises Refused or HostFault with what must be done."""
    layout = find_layout(settings)
    choice = choose_vmm(
        settings.vmm,
        settings.accel,
        firecracker=settings.fc_bin,
        jailer=settings.jailer_bin,
        seccomp_filter=settings.seccomp_filter,
        ask_kvm=partial(find_kvm, layout.runtime),
    )
    if settings.require_limits:
        check_limits(cgroup.missing_controllers())
    if settings.vm_io_bps or settings.vm_io_iops:
        check_io(layout.io, offered=cgroup.has_controller("io"))
    return Host(
        layout=layout,
        choice=choice,
        tsc_khz=native.tsc_khz() if choice.accel == "tcg" else 0,
        templates=Templates(layout, choice) if settings.snapshot_boot else None,
        kernel_override=settings.kernel_image,
        rootfs_override=settings.rootfs_image,
        places=find_places(settings, choice),
    )


def check_limits(lacking: tuple[str, ...]) -> None:
    """HostFault where an operator demands limits for every VM and these cgroup controllers are absent."""
    if lacking:
        raise HostFault(
            f"NIMBUS_REQUIRE_LIMITS is set, and cgroup v2 lacks the controllers {', '.join(lacking)} here: "
            "boot the host with cgroup_no_v1=all"
        )


def check_io(limit: cgroup.IoLimit | None, *, offered: bool) -> None:
    """HostFault where VMs are to have a limit of input and output and this host cannot set one."""
    why = "cgroup v2 lacks the controller io here: boot the host with cgroup_no_v1=all"
    if limit is None:
        why = "NIMBUS_STATE_DIR lies on no disk that a limit could be set for"
    if limit is None or not offered:
        raise HostFault(f"NIMBUS_VM_IO_BPS or NIMBUS_VM_IO_IOPS is set, and {why}")


def find_io_limit(settings: HostSettings) -> cgroup.IoLimit | None:
    """What each VM may read and write; None where that is not limited, or there is no disk to limit."""
    if not settings.vm_io_bps and not settings.vm_io_iops:
        return None
    disk = find_disk(settings.state_dir.absolute())
    return cgroup.IoLimit(disk, settings.vm_io_bps, settings.vm_io_iops) if disk else None


def find_places(settings: HostSettings, choice: Choice) -> Places:
    """Which CPUs VMs get as their own. Raises HostFault or Refused where the settings ask for what cannot be."""
    if not choice.vmm.needs_guest_files:
        return Places(why=f"the {choice.vmm.name} VMM has no vCPUs")
    housekeeping = parse_housekeeping(settings.housekeeping_cpus)
    return read_places(Wish(settings.cpu_pinning, housekeeping, settings.agent_cpu_overcommit))


def parse_guest_ports(text: str) -> tuple[HostPort, ...]:
    """`8080=127.0.0.1:8080,…` as values. Raises Refused for anything else."""
    ports = []
    for part in filter(None, (word.strip() for word in text.split(","))):
        try:
            outer, target = part.split("=")
            address, inner = target.rsplit(":", 1)
            port = HostPort(int(outer), IPv4Address(address), int(inner))
        except ValueError:
            raise Refused(f"NIMBUS_GUEST_PORTS: {part!r} is not PORT=ADDRESS:PORT") from None
        if not (0 < port.port < 65536 and 0 < port.target_port < 65536):
            raise Refused(f"NIMBUS_GUEST_PORTS: {part!r} names no port from 1 to 65535")
        ports.append(port)
    return tuple(ports)
