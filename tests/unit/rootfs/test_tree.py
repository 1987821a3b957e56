"""A planned tree is complete, sorted, and free of paths that could leave it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.rootfs.tree import Kind, digest_tree, file, folder, link, plan_tree

SEGMENT = st.text("abc-._", min_size=1, max_size=3).filter(lambda text: text not in {".", ".."})
PATH = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)


def test_missing_parents_are_added_before_their_children() -> None:
    assert [entry.path for entry in plan_tree((file("a/b/c", b""),))] == ["a", "a/b", "a/b/c"]


def test_a_later_entry_replaces_an_earlier_one_of_its_path() -> None:
    (entry,) = plan_tree((file("init", b"old"), file("init", b"new")))
    assert entry.content == b"new"


def test_a_file_cannot_have_children() -> None:
    with pytest.raises(HostFault, match="no folder"):
        plan_tree((file("a", b""), file("a/b", b"")))


def test_a_link_cannot_have_children() -> None:
    with pytest.raises(HostFault, match="no folder"):
        plan_tree((link("bin", "usr/bin"), file("bin/sh", b"")))


@pytest.mark.parametrize(
    "path", ["", ".", "/etc", "..", "../etc", "a/../../b", "a//b", "a/", "a b", "a\nrm", 'a"', "a\0"]
)
def test_a_path_that_could_leave_the_tree_or_end_a_command_is_refused(path: str) -> None:
    with pytest.raises(HostFault, match="cannot be a path"):
        folder(path)


@pytest.mark.parametrize("target", ["", "a b", "a\nrm /etc/passwd", "'"])
def test_a_link_whose_target_could_end_a_command_is_refused(target: str) -> None:
    with pytest.raises(HostFault, match="cannot be a link"):
        link("a", target)


@given(st.sets(PATH, max_size=8))
def test_every_parent_comes_before_its_children(paths: set[str]) -> None:
    planned = [entry.path for entry in plan_tree(folder(path) for path in paths)]
    seen: set[str] = set()
    for path in planned:
        assert path.rpartition("/")[0] in seen | {""}
        seen.add(path)
    assert paths <= seen


def test_the_digest_changes_with_everything_that_the_guest_could_see() -> None:
    trees = (
        (file("a", b"x"),),
        (file("b", b"x"),),
        (file("a", b"y"),),
        (file("a", b"x", 0o755),),
        (folder("a"),),
        (folder("a", uid=1),),
        (folder("a", gid=1),),
        (link("a", "x"),),
    )
    assert len({digest_tree(tree) for tree in trees}) == len(trees)


def test_the_kind_is_part_of_the_mode() -> None:
    assert folder("a", 0o700).st_mode == 0o40700
    assert file("a", b"").kind is Kind.FILE
