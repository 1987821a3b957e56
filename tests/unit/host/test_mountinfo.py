"""The table of mounts, and where cgroup v2 is found in it."""

from __future__ import annotations

from nimbus.host.cgroup import find_cgroup2
from nimbus.host.mountinfo import Mount, parse_mountinfo

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw
"""


def test_cgroup2_is_found_where_a_hybrid_host_mounts_it() -> None:
    assert find_cgroup2(HYBRID) == "/sys/fs/cgroup/unified"


def test_a_host_with_cgroup_v1_only_has_none() -> None:
    assert find_cgroup2(HYBRID.replace("cgroup2", "cgroup")) is None


def test_a_mount_point_with_a_space_and_a_backslash_is_read_as_it_is() -> None:
    line = r"50 23 0:40 / /srv/a\040jail\134040 rw - tmpfs none rw"
    assert parse_mountinfo(line) == (Mount("/srv/a jail\\040", "tmpfs", "none"),)
