"""The package's build: compiles native/ with make, then lets setuptools do the rest (PEP 517 and 660).

Called by pip, uv and build through pyproject's `backend-path`; never imported by Nimbus itself. Decides
nothing about how C is compiled: make does. A wheel made here carries the binaries, so its tag names the
platform and, because the extension keeps to the limited API, any CPython from 3.11 on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import setuptools
from setuptools import build_meta

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
OLDEST_PYTHON = "cp311"
Settings: TypeAlias = dict[str, str | list[str] | None] | None


class _WithBinaries(setuptools.Distribution):
    """A distribution that is bound to its platform, though setuptools compiles nothing for it."""

    def has_ext_modules(self) -> bool:
        return True

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        super().parse_config_files(*args, **kwargs)
        self.package_data.setdefault("nimbus", []).append("host/*.so")  # the other results pyproject names itself


class _Backend(build_meta._BuildMetaBackend):  # noqa: SLF001 - the one seam for a distclass without a setup.py
    """setuptools' own backend with the distribution above."""

    def run_setup(self, setup_script: str = "setup.py") -> None:
        with (
            tempfile.TemporaryDirectory() as scratch
        ):  # a build folder that stays would put deleted modules into wheels
            options = {"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}, "build": {"build_base": scratch}}
            setuptools.setup(distclass=_WithBinaries, options=options)


_backend = _Backend()
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable


def compile_native() -> None:
    """`make -C native`: does only what is out of date. Stops the build with make's own messages."""
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            raise SystemExit(
                f"nimbus: `{tool}` is missing: install make, a C compiler and libc (Debian: make gcc libc6-dev)"
            )
    jobs = f"-j{os.cpu_count() or 1}"
    subprocess.run(["make", "--no-print-directory", jobs, "-C", str(NATIVE), f"PYTHON={sys.executable}"], check=True)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    compile_native()
    return _backend.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    compile_native()
    return _backend.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """setuptools' sdist plus native/, which is no package and so unknown to it."""
    with tempfile.TemporaryDirectory() as scratch:
        name = _backend.build_sdist(scratch, config_settings)
        top = name.removesuffix(".tar.gz")
        with tarfile.open(Path(scratch, name)) as made, tarfile.open(Path(sdist_directory, name), "w:gz") as full:
            for member in made:
                if not _is_compiled(member.name):
                    full.addfile(member, made.extractfile(member) if member.isfile() else None)
            full.add(NATIVE, f"{top}/native", filter=_source_only)
    return name


def _is_compiled(name: str) -> bool:
    return name.endswith(".so") or "/host/bin/" in name or "/rootfs/bin/" in name


def _source_only(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(member.name).name in {"build", "__pycache__"} else member
