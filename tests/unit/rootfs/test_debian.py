"""Packages are named by apt's signed index and read without being installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.rootfs.debian import Apt, Deb, fetch_deb, fingerprint_archive, is_fetched, parse_print_uris, read_deb
from nimbus.storage.content import hash_file
from tests.unit.rootfs.samples import make_deb

DIGEST = "ab" * 32
LINE = f"'scheme://archive/pool/b/busybox_1%3a1.35-4_amd64.deb' busybox_1%3a1.35-4_amd64.deb 928188 SHA256:{DIGEST}\n"


def test_the_line_that_apt_prints_gives_version_file_and_digest() -> None:
    assert parse_print_uris("busybox", LINE) == Deb("busybox", "1:1.35-4", "busybox_1%3a1.35-4_amd64.deb", DIGEST)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "E: Unable to locate package busybox",
        LINE.replace("SHA256", "MD5Sum"),
        LINE.replace("busybox_1%3a1.35-4_amd64.deb 9", "../../etc/passwd_1_amd64.deb 9"),
        LINE.replace("busybox_1%3a1.35-4_amd64.deb 9", "busybox.deb 9"),
    ],
)
def test_a_line_without_a_digest_or_with_a_path_names_no_package(line: str) -> None:
    assert parse_print_uris("busybox", line) is None


@given(st.text())
def test_no_text_makes_the_parser_fail(text: str) -> None:
    deb = parse_print_uris("busybox", text)
    assert deb is None or "/" not in deb.file_name


def test_only_the_wanted_regular_files_of_a_package_are_read(tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "sample", "1", {"boot/vmlinuz-1": b"kernel", "usr/share/doc/x": b"text"})
    assert read_deb(deb, lambda path: path.startswith("boot/")) == {"boot/vmlinuz-1": b"kernel"}


def test_a_package_that_is_cut_short_is_the_hosts_fault(tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "sample", "1", {"data": os.urandom(100_000)})
    deb.write_bytes(deb.read_bytes()[:50_000])
    with pytest.raises(HostFault, match="remove it and build again"):
        read_deb(deb, lambda _: True)


def test_bytes_that_are_no_package_are_the_hosts_fault(tmp_path: Path) -> None:
    path = tmp_path / "no.deb"
    path.write_bytes(b"no package")
    with pytest.raises(HostFault, match="remove it and build again"):
        read_deb(path, lambda _: True)


def test_a_package_that_is_there_and_intact_is_not_fetched_again(tmp_path: Path) -> None:
    path = make_deb(tmp_path, "sample", "1", {"data": b"x"})
    deb = Deb("sample", "1", path.name, hash_file(path).sha256)
    assert fetch_deb(Apt(), deb, tmp_path) == path


def test_a_package_whose_bytes_changed_counts_as_absent(tmp_path: Path) -> None:
    path = make_deb(tmp_path, "sample", "1", {"data": b"x"})
    deb = Deb("sample", "1", path.name, hash_file(path).sha256)
    path.write_bytes(path.read_bytes() + b"!")
    assert not is_fetched(deb, tmp_path)


def test_the_fingerprint_follows_the_lists(tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    before = fingerprint_archive(Apt((), lists))
    (lists / "archive_Packages").write_text("Package: new\n")
    assert fingerprint_archive(Apt((), lists)) != before
    assert fingerprint_archive(Apt((), lists)) == fingerprint_archive(Apt((), lists))
