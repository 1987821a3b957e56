"""What the control plane's routes and sweepers work with: opened by app.py, passed down, never global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from nimbus.control_plane.hosts.beats import Beats
from nimbus.control_plane.hosts.mirror import Mirror
from nimbus.control_plane.hosts.verified import VerifiedTokens
from nimbus.control_plane.keys.cachetokens import CacheTerms
from nimbus.control_plane.keys.denylist import DenyList
from nimbus.control_plane.keys.ring import Keychain
from nimbus.control_plane.keys.shared import SharedKey
from nimbus.control_plane.metrics import Metrics
from nimbus.control_plane.orgs.seals import Seals
from nimbus.control_plane.queue.seats import Room
from nimbus.control_plane.queue.watch import HostClock, WatchTerms, read_host_clock
from nimbus.model.labels import LabelRules
from nimbus.model.lease import LeasePolicy
from nimbus.runtime.limiter import RateLimiter
from nimbus.runtime.nonces import Nonces
from nimbus.runtime.postgres import Database
from nimbus.runtime.redis import Bell
from nimbus.wire.tokens import SigningKey

MACHINES = "machines"  # the bell's channel: there may be something to lease
DELIVERIES = "deliveries"  # and this one: the inbox holds more than one process can work on at once
DENIALS = "denials"  # and this one: a token was revoked
ADMISSION = "admission"  # and this one: jobs are kept until their org's budget has room
RUNNERS = "runners"  # and this one: a runner's registration may have become superfluous


@dataclass(frozen=True)
class LeaseTerms:
    """How long leases last. A linked GitHub job in progress gets longer: GitHub gives it no second runner."""

    policy: LeasePolicy = field(default_factory=LeasePolicy)
    in_progress_ttl_s: float = 3600.0
    answer_s: float = 30.0  # of a lease until its holder first renews it, which it does at once: the grant may be lost
    max_attempts: int = 3  # hosts that may fail a machine request before it is given up
    starvation_s: float = 300.0  # that a request waits for free room before a host makes some; 0: none ever does
    sweep_s: float = 1.0  # between two looks for leases whose holder fell silent
    look_s: float = 2.0  # for waiting agents the queue is looked into this often even when no bell rings
    patience_s: float = 1.0  # that an agent has to lease what it was woken for, before another is woken
    host_clock: Callable[[], HostClock] = read_host_clock

    @property
    def watch(self) -> WatchTerms:
        return WatchTerms(self.policy, self.host_clock)


@dataclass(frozen=True)
class AccessPolicy:
    """Who may come in with what. Of several keys the first signs; all are accepted."""

    admin_keys: tuple[SigningKey, ...] = field(repr=False)
    enrolment_keys: tuple[SigningKey, ...] = field(repr=False)
    allowed_subjects: frozenset[str] = frozenset()
    metrics_token: str | None = field(default=None, repr=False)
    denied: DenyList = field(default_factory=DenyList)  # the one part that changes: revocation.py keeps it fresh
    agent_token_ttl_s: float = 3600.0
    agent_token_rate_limit: int = 15
    agent_token_rate_interval_s: float = 60.0
    shared_keys: tuple[SharedKey, ...] = ()  # what may be told of the secrets behind the first two


@dataclass(frozen=True)
class HostTerms:
    """How often hosts tell of themselves, and how old their release may be."""

    interval_s: float = 15.0  # NIMBUS_AGENT_HEARTBEAT_INTERVAL
    min_version: str | None = None  # NIMBUS_AGENT_MIN_VERSION; None: any

    @property
    def resting_s(self) -> float:
        """The same for a host on which nothing runs or changes: what changes there is told at once all the same."""
        return 2 * self.interval_s

    @property
    def silent_s(self) -> float:
        """After which a host counts as silent: some heartbeats were missed, and every long poll is over."""
        return max(60.0, 3 * self.resting_s)


@dataclass(frozen=True)
class JobRules:
    """What a submission through our API meets."""

    rate_limit: int = 100
    rate_interval_s: float = 60.0
    default_image: str = "base"
    aging_s: float = 60.0  # of waiting that are worth one step of priority
    stolen_limit: int = 3  # DemandRules' own, for what is said of a job that waits because of it
    sizes: LabelRules = field(default_factory=LabelRules)  # how large a machine may be, as for labels


@dataclass(frozen=True)
class Services:
    """Everything with a lifetime, and the small values below the settings."""

    database: Database
    bell: Bell
    keys: Keychain
    metrics: Metrics
    access: AccessPolicy
    nonces: Nonces
    limiter: RateLimiter
    cache_terms: CacheTerms
    seals: Seals
    lease_terms: LeaseTerms = field(default_factory=LeaseTerms)
    job_rules: JobRules = field(default_factory=JobRules)
    host_terms: HostTerms = field(default_factory=HostTerms)
    mirror: Mirror = field(default_factory=Mirror)
    log_url: str | None = None
    stopping: trio.Event = field(default_factory=trio.Event)  # long polls end when it is set
    room: Room = field(default_factory=Room)  # agents that wait in this process
    verified: VerifiedTokens = field(default_factory=VerifiedTokens)  # of agents, a moment ago
    beats: Beats = field(default_factory=Beats)  # heartbeats that come at the same moment
