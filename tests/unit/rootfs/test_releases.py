"""A release list says exactly what is trusted, or is refused with the place that cannot be meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused
from nimbus.rootfs.releases import Part, parse_release_list

EXAMPLE = Path(__file__).parents[3] / "deploy" / "assets.example.toml"
GOOD = """
version = 1

[[download]]
name = "firecracker"
release = "v1"
url = "https://example.org/a.tgz"
sha256 = "{digest}"
files = [{{ role = "firecracker", member = "a/b" }}, {{ role = "jailer", member = "a/c" }}]
""".format(digest="a" * 64)
KERNEL = """
[[download]]
name = "kernel"
release = "6.1"
url = "https://example.org/vmlinux"
sha256 = "{digest}"
files = [{{ role = "vmlinux" }}]
""".format(digest="b" * 64)
ROOTFS = KERNEL.replace("kernel", "rootfs").replace("vmlinux", "rootfs")
IMAGE = '[image]\nname = "fetched"\n'


def test_a_list_says_what_each_file_is() -> None:
    (download,) = parse_release_list(GOOD, "x86_64").downloads
    assert download.title == "firecracker v1"
    assert download.parts == (Part("firecracker", "a/b"), Part("jailer", "a/c"))
    assert (download.max_bytes, download.redirect_hosts) == (1 << 30, frozenset())


def test_a_download_for_another_machine_is_passed_over() -> None:
    text = GOOD + GOOD.replace("version = 1", "").replace('"firecracker"\nrel', '"other"\narch = "aarch64"\nrel')
    assert [download.name for download in parse_release_list(text, "x86_64").downloads] == ["firecracker"]
    with pytest.raises(Refused, match="names the role 'firecracker' twice"):
        parse_release_list(text, "aarch64")


def test_a_kernel_and_a_root_file_system_become_the_named_image() -> None:
    assert parse_release_list(GOOD + KERNEL + ROOTFS + IMAGE, "x86_64").image == "fetched"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version = [", "no TOML"),
        (GOOD.replace("version = 1", "version = 2"), "must say version = 1"),
        (GOOD.replace("version = 1", "version = 1\nextra = 1"), "'extra' is no key"),
        ("version = 1", "download must be a list of tables"),
        (GOOD.replace('"https:', '"ftp:'), "http or https address"),
        (GOOD.replace("https://", "https://me:hunter2@"), "no user name and no password"),
        (GOOD.replace("a" * 64, ""), "sha256 must be 64 hex digits"),
        (GOOD.replace("a" * 64, "A" * 64), "sha256 must be 64 hex digits"),
        (GOOD.replace('"firecracker"\nrel', '"../x"\nrel'), "name must be 1 to 63"),
        (GOOD.replace('"v1"', '"v/1"'), "release must be 1 to 63"),
        (GOOD.replace("files", "max_mib = 0\nfiles"), "max_mib must be a number"),
        (GOOD.replace("files", "max_mib = true\nfiles"), "max_mib must be a number"),
        (GOOD.replace("files", 'redirect_hosts = ["a/b"]\nfiles'), "redirect_hosts must be a list of host names"),
        (GOOD.replace('role = "jailer"', 'role = "janitor"'), "'janitor' is no role"),
        (GOOD.replace('role = "jailer"', 'role = "firecracker"'), "names the role 'firecracker' twice"),
        (GOOD.replace(', member = "a/c"', ""), "each must name its member"),
        (GOOD.replace(', member = "a/c"', ', mode = "a"'), "'mode' is no key"),
        (GOOD + GOOD.replace("version = 1", ""), "twice"),
        (GOOD + KERNEL + ROOTFS, r"does not say which image it is for: \[image\]"),
        (GOOD + KERNEL + IMAGE, "an image needs a rootfs and a vmlinux or vmlinuz; the list has vmlinux"),
        (GOOD + KERNEL + ROOTFS + IMAGE.replace("fetched", "../x"), "is no image name"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        parse_release_list(text, "x86_64")
    assert "hunter2" not in str(caught.value)


def test_the_shipped_form_holds_no_digest_and_is_refused_until_somebody_fills_them_in() -> None:
    text = EXAMPLE.read_text()
    assert not re.search("[0-9a-f]{64}", text)
    with pytest.raises(Refused, match=r"sha256 must be 64 hex digits.*take it from where the release is published"):
        parse_release_list(text, "x86_64")


def test_the_shipped_form_is_a_list_once_it_is_filled_in() -> None:
    filled = parse_release_list(EXAMPLE.read_text().replace('sha256 = ""', f'sha256 = "{"c" * 64}"'), "x86_64")
    assert [download.name for download in filled.downloads] == ["firecracker", "kernel", "rootfs"]
    assert filled.image == "firecracker"


@given(st.text())
def test_any_text_is_a_list_or_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_release_list(text, "x86_64")
