"""What a jailer is asked that it must refuse, and how the real one's words are had. All end before anything is jailed.

`{base}` is an empty folder, `{exec}` the program, `{netns}` no namespace. Recorded by record_refusals.py, played by
tests/contract/test_jailer_refusals.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.play import LIMIT_S, Told

ID = "nb123-0a1b2c3d"
_UID = 4_200_001
_BASE = ("--chroot-base-dir", "{base}")
_EXEC = ("--exec-file", "{exec}")
_WHO = ("--uid", str(_UID), "--gid", str(_UID))
_ALL = ("--id", ID, *_EXEC, *_WHO, *_BASE)


def _leave_node(root: Path) -> None:
    (root / "dev" / "net").mkdir(parents=True)
    os.mknod(root / "dev" / "net" / "tun", 0o20600, os.makedev(10, 200))


def _leave_hard_link(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "firecracker").touch()
    os.link(root / "firecracker", root / "other")


def _leave_symlink(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "firecracker").symlink_to("/etc/passwd")


@dataclass(frozen=True)
class JailerStory:
    """One command line, and what an earlier jail left behind."""

    words: tuple[str, ...]
    leave: Callable[[Path], None] | None = None


def _also(*words: str) -> JailerStory:
    return JailerStory((*_ALL, *words))


JAILER_STORIES: Mapping[str, JailerStory] = {
    "nothing said": JailerStory(()),
    "no uid": JailerStory(("--id", ID, *_EXEC, "--gid", "1", *_BASE)),
    "a word it does not know": _also("--mood", "calm"),
    "two ids": _also("--id", "other"),
    "an empty id": JailerStory(("--id", "", *_EXEC, *_WHO, *_BASE)),
    "an id too long": JailerStory(("--id", "x" * 65, *_EXEC, *_WHO, *_BASE)),
    "an id that leads elsewhere": JailerStory(("--id", "../other", *_EXEC, *_WHO, *_BASE)),
    "no program": JailerStory(("--id", ID, "--exec-file", "{base}/none", *_WHO, *_BASE)),
    "a folder for a program": JailerStory(("--id", ID, "--exec-file", "{base}", *_WHO, *_BASE)),
    "no base": JailerStory(("--id", ID, *_EXEC, *_WHO, "--chroot-base-dir", "{base}/none")),
    "a file for a base": JailerStory(("--id", ID, *_EXEC, *_WHO, "--chroot-base-dir", "/etc/passwd")),
    "a uid that is none": JailerStory(("--id", ID, *_EXEC, "--uid", "root", "--gid", "1", *_BASE)),
    "a gid below zero": JailerStory(("--id", ID, *_EXEC, "--uid", "1", "--gid", "-1", *_BASE)),
    "a cgroup from the root": _also("--cgroup-version", "2", "--parent-cgroup", "/nimbus"),
    "a cgroup outside": _also("--cgroup-version", "2", "--parent-cgroup", "../nimbus"),
    "a cgroup of no version": _also("--cgroup-version", "two"),
    "a value with a sign of its own": _also("--cgroup-version", "2", "--cgroup", "io.max=8:0 rbps=1"),
    "a limit without a value": _also("--resource-limit", "fsize"),
    "a limit that is no number": _also("--resource-limit", "fsize=much"),
    "a limit of another kind": _also("--resource-limit", "memory=1"),
    "no such netns": _also("--netns", "{base}/none"),
    "a file for a netns": _also("--netns", "/etc/passwd"),
    "a jail that was left": JailerStory(_ALL, _leave_node),
    "a program with a second name": JailerStory(_ALL, _leave_hard_link),
    "a program that leads elsewhere": JailerStory(_ALL, _leave_symlink),
}


def play_jailer(jailer: Path, program: Path, base: Path, story: JailerStory) -> Told:
    """How it ended and the first thing that it said, with the host's own paths taken out."""
    if story.leave is not None:
        story.leave(base / program.name / ID / "root")
    words = [word.replace("{base}", str(base)).replace("{exec}", str(program)) for word in story.words]
    done = subprocess.run(
        [jailer, *words], capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL
    )
    said = done.stderr.partition("\n")[0]
    return {"exit": done.returncode, "said": said.replace(str(program), "{exec}").replace(str(base), "{base}")}
