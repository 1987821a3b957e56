"""`nimbus assets`: build, fetch, list and verify what guests boot from. Decides nothing: `rootfs/`, `storage/` do.

Also `python -m nimbus.cli.assets`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nimbus.model.errors import NimbusError
from nimbus.storage.content import ImageStore
from nimbus.storage.images import DEFAULT_IMAGE, Manifest, list_images, read_manifest, verify_image

if TYPE_CHECKING:
    from nimbus.rootfs.fetch import Fetched

_MIB = 1 << 20
_VARIABLES = {"firecracker": "NIMBUS_FC_BIN", "jailer": "NIMBUS_JAILER_BIN"}  # where the agent looks for them
_SHORT_DIGEST = 12

EPILOG = """\
\b
Examples:
  nimbus assets build            fetch a kernel and busybox, make the image `base`; needs no root
  nimbus assets build --force    make everything anew: repairs a damaged store
  nimbus assets list
  nimbus assets verify base      read every byte and compare it with the manifest
  nimbus assets fetch --from releases.toml    pinned Firecracker, jailer, kernel and rootfs
\b
Environment:
  NIMBUS_STATE_DIR    the images lie in its folder images/ (/var/lib/nimbus for root,
                      ~/.local/share/nimbus otherwise), fetched programs in releases/
"""


@click.group(epilog=EPILOG)
def assets() -> None:
    """Build, fetch, list and verify what guests boot from: kernel, initramfs and root file system.

    What is built comes from the distribution's own packages, through apt, and from Nimbus itself; what is fetched,
    from a release list of yours. Images are stored by the sha256 of their content; with nothing new to do, nothing
    is done.
    """


@assets.command()
@click.option("--name", default=DEFAULT_IMAGE, show_default=True, help="Name of the image.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
@click.option("--force", is_flag=True, help="Make every part anew, though nothing has changed.")
def build(name: str, as_json: bool, force: bool) -> None:
    """Make the image, or find that it is there already.

    \b
    nimbus assets build
    nimbus assets build --name base --json | jq .files.rootfs
    """
    # Here and not above: `list` and `verify` start quicker without the builder.
    from nimbus.rootfs.build import Build, build_image

    started = time.monotonic()
    built = build_image(Build(_store(), _say_since(started), name, force=force))
    if as_json:
        print(json.dumps(_describe(built.manifest) | {"changed": built.changed}))
        return
    same = "made anew, the same bytes as before" if force else "up to date"
    what = "built" if built.changed else same
    print(f"image {name}: {what} in {time.monotonic() - started:.2f} s")
    _print_files(built.manifest)


@assets.command()
@click.option(
    "--from", "place", required=True, metavar="FILE|URL", help="The release list: what to fetch, and its sha256."
)
@click.option(
    "--sha256", "list_sha256", default=None, metavar="HEX", help="The list's own; needed where it comes by http."
)
@click.option("--json", "as_json", is_flag=True, help="Print what is there now as one JSON object.")
@click.option("--force", is_flag=True, help="Fetch everything anew, and replace a release that holds other bytes.")
def fetch(place: str, list_sha256: str | None, as_json: bool, force: bool) -> None:
    """Fetch the Firecracker, jailer, kernel and root file system that a release list names.

    \b
    nimbus assets fetch --from releases.toml
    nimbus assets fetch --from https://example.org/releases.toml --json

    Every file is checked against its sha256 before any of them is installed. A download that broke goes on where
    it stopped. The list is yours to write: deploy/assets.example.toml shows the format. Nothing of this asks a
    proxy; on a host without a way out, name a mirror in the list.
    """
    import trio

    from nimbus.rootfs.fetch import Fetch, fetch_releases  # both late, as above

    say = _say_since(time.monotonic())
    fetched = trio.run(
        fetch_releases, Fetch(place, _store(), _state_dir().absolute() / "releases", say, list_sha256, force)
    )
    if as_json:
        print(json.dumps(_describe_fetched(fetched)))
        return
    for program in fetched.programs:
        done = "installed" if program.changed else "up to date"
        print(f"{program.name} {program.release}: {done} in {program.folder}")
        for role, blob in sorted(program.files.items()):
            print(f"  {role:<12} {blob.bytes / _MIB:8.2f} MiB  sha256:{blob.sha256[:_SHORT_DIGEST]}")
            print(f"  {_VARIABLES[role]}={program.folder / role}")
    if fetched.programs and os.geteuid() != 0:
        click.echo(
            "nimbus: these programs are not root's: an agent that runs as root should run none but root's", err=True
        )
    if fetched.image:
        print(f"image {fetched.image.name}: {'published' if fetched.image_changed else 'up to date'}")
        _print_files(fetched.image)


@assets.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of manifests.")
def list_(as_json: bool) -> None:
    """Show the images of this host."""
    store = _store()
    manifests = [read_manifest(store, name) for name in list_images(store)]
    if as_json:
        print(json.dumps([_describe(manifest) for manifest in manifests]))
    elif not manifests:
        print(f"no image in {store.root}; `nimbus assets build` makes one")
    else:
        print(f"{'NAME':<20} {'KERNEL':<28} {'MIB':>6}  CREATED")
        for manifest in manifests:
            size = sum(blob.bytes for blob in manifest.files.values()) / _MIB
            print(f"{manifest.name:<20} {manifest.kernel_release:<28} {size:>6.1f}  {manifest.created}")


@assets.command()
@click.argument("name", default=DEFAULT_IMAGE)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def verify(name: str, as_json: bool) -> None:
    """Read every byte of the image NAME and compare it with the manifest."""
    manifest = verify_image(_store(), name)
    if as_json:
        print(json.dumps(_describe(manifest) | {"verified": True}))
        return
    print(f"image {name}: every byte is as its manifest says")
    _print_files(manifest)


def _describe_fetched(fetched: Fetched) -> dict[str, Any]:
    programs = [asdict(program) | {"folder": str(program.folder)} for program in fetched.programs]
    image = fetched.image and _describe(fetched.image) | {"changed": fetched.image_changed}
    return {"list_sha256": fetched.list_sha256, "programs": programs, "image": image}


def _store() -> ImageStore:
    return ImageStore(_state_dir().absolute() / "images")


def _state_dir() -> Path:
    named = os.environ.get("NIMBUS_STATE_DIR")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/nimbus")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nimbus"


def _say_since(started: float) -> Callable[[str], None]:
    """Progress goes to stderr: stdout is the result."""
    return lambda line: click.echo(f"{time.monotonic() - started:7.2f} s  {line}", err=True)


def _describe(manifest: Manifest) -> dict[str, Any]:
    return asdict(manifest)


def _print_files(manifest: Manifest) -> None:
    for role, blob in sorted(manifest.files.items()):
        print(f"  {role:<10} {blob.bytes / _MIB:8.2f} MiB  sha256:{blob.sha256[:_SHORT_DIGEST]}")
    packages = ", ".join(f"{package.name} {package.version}" for package in manifest.provenance.packages)
    print(f"  from {packages}")


def main() -> None:
    """As `nimbus` does: an error is one line and the exit code of whoever must act."""
    try:
        assets()
    except NimbusError as error:
        click.echo(f"nimbus: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
