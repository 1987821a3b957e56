"""`make test-controllers`: our own tests of the host inside a guest whose kernel has every cgroup controller.

A development machine's cgroup v2 may lack cpu, cpuset, memory and io; there every limit is a named degradation and
nothing shows that it would hold. Here a Debian root with Debian's own kernel is booted, the checkout is its disk, and
the kernel is the judge: tests/host, tests/contract and tests/controllers/guest, as root. All it makes is below
build/controllers: `results/` (junit.xml, dmesg, status), `console.log`, and the root, which the next run uses again.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nimbus.model.errors import NimbusError, Refused
from nimbus.rootfs import debian, initramfs
from nimbus.rootfs.tree import file, plan_tree
from nimbus.storage.ext4 import make_ext4
from tests.controllers.boot import Boot, run_guest
from tests.controllers.disks import read_disk, write_disk
from tests.controllers.root import ROOT, Root, ensure_root
from tests.controllers.verdict import judge

FOLDER = ROOT / "build/controllers"
TESTS = ("tests/host", "tests/contract", "tests/controllers/guest")
# What is left out in there, and why.
LEFT_OUT = {
    "tests/contract/test_vmm.py::test_auto_takes_a_real_vmm_and_says_what_emulation_is_worth": "there is no QEMU",
    "tests/host/test_parallel_teardown.py::test_fifty_vms_are_torn_down_in_parallel_in_less_than_five_seconds": (
        "it measures the machine, and this one is emulated"
    ),
}
# Not all that lies in a checkout: caches, build results and the web are nothing to these tests.
TAKEN = ("nimbus", "native", "tests", "bench", "docs", "deploy", "pyproject.toml", "README.md", "Makefile")
RESULTS_BYTES = 256 << 20
SCRATCH_BYTES = 8 << 30  # sparse
RESULTS_UUID = "6e696d62-7573-4000-8000-00000000000c"
LIMIT_S = 5400.0  # emulated, on a busy machine; some fifteen minutes on an idle one


def main() -> int:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="tests.controllers.run", description=summary, allow_abbrev=False)
    parser.add_argument("--accel", default="tcg", choices=("tcg", "kvm"), help="kvm only where it is hardware's")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds until the guest is killed")
    wanted, arguments = parser.parse_known_args()
    started = time.monotonic()

    def progress(text: str) -> None:
        say(f"controllers: {time.monotonic() - started:5.0f} s  {text}\n".encode())

    try:
        with lock_folder():
            root = ensure_root(FOLDER, progress)
            good, lines = judge(boot_tests(root, arguments, wanted, progress))
    except NimbusError as error:
        good, lines = False, [str(error)]
    except KeyboardInterrupt:
        return 130  # as a shell says it; the guest is gone
    for line in (*(f"left out: {name}: {why}" for name, why in LEFT_OUT.items()), *lines):
        progress(line)
    return 0 if good else 1


@contextmanager
def lock_folder() -> Iterator[None]:
    """The folder for this run alone, swept of what one that was killed had left."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another test-controllers is at work in this checkout") from None
        for left in FOLDER.glob("boot-*"):
            shutil.rmtree(left)
        yield


def say(data: bytes) -> None:
    """To whoever waits, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def boot_tests(root: Root, arguments: list[str], wanted: argparse.Namespace, progress: Callable[[str], None]) -> Path:
    """Boot the checkout with the tests' arguments; the folder with what the guest left."""
    results = FOLDER / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="boot-") as name:
        scratch = Path(name)
        progress("packing the checkout")
        write_checkout(scratch / "checkout.img", scratch / "checkout", root.python_minor, arguments)
        (scratch / "initramfs").write_bytes(render_initramfs(root))
        (scratch / "results.img").touch()
        make_ext4(scratch / "results.img", RESULTS_BYTES, uuid=RESULTS_UUID, label="results")
        (scratch / "scratch.img").touch()
        os.truncate(scratch / "scratch.img", SCRATCH_BYTES)
        boot = Boot(
            kernel=root.kernel,
            initramfs=scratch / "initramfs",
            disks={"root": root.disk, "checkout": scratch / "checkout.img"},
            kept={"results": scratch / "results.img", "scratch": scratch / "scratch.img"},
            accel=wanted.accel,
            console=FOLDER / "console.log",
            limit_s=wanted.limit,
        )
        progress("booting the guest")
        run_guest(boot, say, progress)
        read_disk(scratch / "results.img", results)
    return results


def write_checkout(image: Path, tree: Path, python_minor: int, arguments: list[str]) -> None:
    """The checkout as a disk: sources and what is built of them, compiled where this Python can do it."""
    tree.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "build", ".*")
    for name in TAKEN:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, tree / name)
    words = ["--color=no", "-p", "no:cacheprovider", "-m", "not vm"]
    words += [word for name in LEFT_OUT for word in ("--deselect", name)]
    words += [*TESTS, *arguments]
    (tree / "pytest.arguments").write_text(shlex.join(words))
    if sys.version_info[1] == python_minor:
        for name in ("nimbus", "tests"):
            compileall.compile_dir(tree / name, quiet=1, stripdir=str(tree), prependdir="/nimbus")
    write_disk(image, tree, "checkout")


def render_initramfs(root: Root) -> bytes:
    """The modules of the root's kernel, and our first steps."""
    found = debian.read_deb(root.busybox, lambda path: path in {"bin/busybox", "usr/bin/busybox"})
    (busybox,) = found.values()
    init = Path(__file__).with_name("initramfs.sh").read_bytes()
    tree = plan_tree((*initramfs.plan_init(init), file("bin/busybox", busybox, 0o755)))
    return root.modules.read_bytes() + initramfs.render_cpio(tree)


if __name__ == "__main__":
    sys.exit(main())
