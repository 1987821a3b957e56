"""The Debian root of the guest that has every controller: packages, wheels, a kernel and its modules, as one folder.

Made from what apt knows on this machine, by its own clients; never changes this machine, never reads the checkout.
Needs root, for a root's files are root's. Called by run.py, which keeps the result until what went into it changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nimbus.model.errors import HostFault, Refused
from nimbus.rootfs import debian, initramfs, kernel, modules
from nimbus.rootfs.packages import Packages, fetch_packages
from nimbus.storage.content import ImageStore
from tests.controllers.disks import write_disk

ROOT = Path(__file__).parents[2]
RECIPE = 1  # raised by whoever changes what is made of equal inputs
PACKAGES = ("e2fsprogs", "iproute2", "kmod", "mount", "nftables", "procps", "python3", "util-linux", "xfsprogs")
# What only services and developers' tools load, some of it hundreds of megabytes.
LEFT_OUT = frozenset(
    [
        "boto3",
        "botocore",
        "chdb",
        "chdb-core",
        "clickhouse-connect",
        "contourpy",
        "fonttools",
        "grimp",
        "import-linter",
        "kiwisolver",
        "libcst",
        "matplotlib",
        "mypy",
        "numpy",
        "pandas",
        "pillow",
        "pyarrow",
        "ruff",
        "s3transfer",
        "types-cffi",
        "types-pyyaml",
        "types-setuptools",
    ]
)
WITHOUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
WANTED_MODULES = ("virtio_pci", "virtio_blk", "virtio_rng")  # before the root is there; the root brings all others
OLDEST_PYTHON = 11  # of 3: what pyproject.toml names
SITE = "opt/site"


@dataclass(frozen=True)
class Root:
    """What a boot takes; all of it is only read."""

    kernel: Path
    modules: Path  # an initramfs' part
    busybox: Path  # package
    disk: Path
    python_minor: int


def ensure_root(folder: Path, progress: Callable[[str], None]) -> Root:
    """The root below `folder`: made now, or the one of before where nothing has changed."""
    if os.geteuid() != 0:
        raise Refused("test-controllers takes root: it makes a Debian root, whose files are root's")
    packages = fetch_packages(ImageStore(folder / "packages"), progress)
    requirements = filter_requirements((ROOT / "requirements-dev.txt").read_text())
    sources = find_sources()
    made = folder / f"root-{_key(packages, requirements, sources)}"
    if not made.is_dir():
        for old in folder.glob("root-*"):
            shutil.rmtree(old)
        partial = folder / "root.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _make(partial, packages, requirements, sources, progress)
        partial.rename(made)
    facts = json.loads((made / "facts.json").read_text())
    return Root(
        made / "vmlinux", made / "modules.cpio", packages.busybox_path, made / "root.img", facts["python_minor"]
    )


def filter_requirements(text: str) -> str:
    """Pure: the pinned requirements without what is left out, each with its hashes."""
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    names = (re.match(r"[A-Za-z0-9._-]+", entry) for entry in entries)
    return "".join(entry for name, entry in zip(names, entries, strict=True) if name and name[0] not in LEFT_OUT)


def find_sources() -> tuple[Path, ...]:
    """The files in which this machine's apt is told of archives, with the keys that they name."""
    asked = ("apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d")
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    places = {key: Path(shlex.split(value)[0]) for key, _, value in (line.partition("=") for line in lines)}
    found = [places["LIST"], *sorted(places["PARTS"].glob("*.list")), *sorted(places["PARTS"].glob("*.sources"))]
    return tuple(path for path in found if path.is_file() and path.stat().st_size > 0)


def _key(packages: Packages, requirements: str, sources: tuple[Path, ...]) -> str:
    told = [RECIPE, PACKAGES, WANTED_MODULES, packages.kernel.sha256, packages.busybox.sha256, requirements]
    told += [path.read_text() for path in sources]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _make(
    folder: Path, packages: Packages, requirements: str, sources: tuple[Path, ...], progress: Callable[[str], None]
) -> None:
    tree = folder / "tree"
    progress("making a Debian root with mmdebstrap (a minute)")
    trimmed = [f"--dpkgopt=path-exclude={pattern}" for pattern in WITHOUT]
    included = f"--include={','.join(PACKAGES)}"
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--format=directory", included, *trimmed]
    _run([*argv, "", str(tree), *map(str, sources)], folder)
    minor = find_python_minor(tree)
    progress(f"adding the pinned Python packages, for Python 3.{minor}")
    _install_site(folder, tree, minor, requirements)
    progress(f"adding {packages.kernel.package}")
    _install_kernel(folder, tree, packages)
    for name in ("nimbus", "results"):
        (tree / name).mkdir()
    for name in ("hostname", "resolv.conf"):  # mmdebstrap takes them from this machine
        (tree / "etc" / name).unlink(missing_ok=True)
    (tree / "usr/lib/python3/dist-packages/nimbus.pth").write_text(f"/{SITE}\n/nimbus\n")
    progress("writing the root's disk")
    write_disk(folder / "root.img", tree, "root")
    shutil.rmtree(tree)
    (folder / "facts.json").write_text(json.dumps({"python_minor": minor}))


def find_python_minor(tree: Path) -> int:
    """Which Python the distribution has. Refused where it is older than what Nimbus runs on."""
    name = os.readlink(tree / "usr/bin/python3")
    minor = int(name.rpartition(".")[2])
    if minor < OLDEST_PYTHON:
        raise Refused(f"this distribution's own Python is {name}; the guest's tests take 3.{OLDEST_PYTHON} or newer")
    return minor


def _install_site(folder: Path, tree: Path, minor: int, requirements: str) -> None:
    (folder / "requirements.txt").write_text(requirements)
    uv = shutil.which("uv") or str(ROOT / ".setup/uv/bin/uv")
    argv = [uv, "pip", "install", "--quiet", "--python-version", f"3.{minor}", "--python-platform", "linux"]
    argv += ["--target", str(tree / SITE), "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    _run([*argv, "-r", str(folder / "requirements.txt")], folder)
    # Emulated, the first import of all this would take minutes.
    _run(["chroot", str(tree), "python3", "-m", "compileall", "-q", f"/{SITE}"], folder)


def _install_kernel(folder: Path, tree: Path, packages: Packages) -> None:
    files = debian.read_deb(packages.kernel_path, lambda path: path.startswith(("boot/vmlinuz-", "lib/", "usr/lib/")))
    (image,) = (content for path, content in files.items() if path.startswith("boot/vmlinuz-"))
    (folder / "vmlinux").write_bytes(kernel.extract_vmlinux(image))
    of_modules = {path.removeprefix("usr/"): content for path, content in files.items() if "/modules" in path}
    for path, content in of_modules.items():
        target = tree / "usr" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    _run(["chroot", str(tree), "depmod", kernel.read_release(image)], folder)
    (builtin,) = (content for path, content in of_modules.items() if path.endswith("/modules.builtin"))
    candidates = {path: content for path, content in of_modules.items() if modules.is_module(path)}
    chosen = modules.select_modules(candidates, builtin.decode().split(), WANTED_MODULES)
    (folder / "modules.cpio").write_bytes(initramfs.render_cpio(initramfs.plan_modules(chosen)))


def _run(argv: list[str], folder: Path) -> None:
    """One tool, its words in the folder's log; on failure their end."""
    log = folder / "log"
    environment = os.environ | {
        "LC_ALL": "C",
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": os.environ.get("UV_SYSTEM_CERTS", "1"),  # trust what the machine trusts, as deploy/setup.sh
        "UV_LINK_MODE": "copy",
    }
    with log.open("ab") as file:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd="/", check=False
        )
    if done.returncode != 0:
        raise HostFault(f"{argv[0]} failed with status {done.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
