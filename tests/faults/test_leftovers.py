"""What lies under a VM's name without any record of it is nobody's, and the reaper takes it away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nimbus.host.inventory import Territory
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from tests.hosts import needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


async def test_a_folder_without_a_record_is_swept_by_its_name(territory: Territory) -> None:
    folder = territory.state_root / "vms" / "0a1b2c3d"
    (folder / "jail" / "root").mkdir(parents=True)
    (folder / "jail" / "root" / "left").write_text("by an earlier VM of this very id")
    layout = HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)
    report = await reap(layout, living=False)
    assert report.reaped == ["0a1b2c3d"]
    assert not folder.exists()
