"""The floor of `make bench-run`: the bare VMM command, from main entered to the guest's exit status.

Imports nothing of nimbus. It is given, as JSON on stdin, the very argv that `nimbus run` uses, with the jail's paths
replaced by the host's, and the bytes to say on the guest link; it prints its milliseconds as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import zlib

HEADER_BYTES = 16
HELLO, EXIT = 2, 11
CONNECT_EVERY_S = 0.002
LIMIT_S = 120.0


def connect(path: str, vmm: subprocess.Popen[bytes]) -> socket.socket:
    """The guest link's socket, as soon as the VMM has made it."""
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(path)
        except OSError:
            link.close()
            if vmm.poll() is not None:
                sys.exit(f"the VMM ended with {vmm.returncode} before it made {path}")
            time.sleep(CONNECT_EVERY_S)
        else:
            return link


def wait_frame(link: socket.socket, buffer: bytearray, kind: int) -> bytes:
    """The payload of the next frame of this kind; others are passed over."""
    while True:
        begin = buffer.find(b"NBL1")
        while begin >= 0 and len(buffer) >= begin + HEADER_BYTES:
            head = buffer[begin : begin + HEADER_BYTES]
            length = int.from_bytes(head[8:12], "little")
            end = begin + HEADER_BYTES + length
            if len(buffer) < end:
                break
            payload = bytes(buffer[begin + HEADER_BYTES : end])
            good = zlib.crc32(payload, zlib.crc32(head[4:12])) == int.from_bytes(head[12:16], "little")
            del buffer[: end if good else begin + 1]
            if good and head[4] == kind:
                return payload
            begin = buffer.find(b"NBL1")
        received = link.recv(65536)
        if not received:
            sys.exit("the VMM closed the guest link")
        buffer += received


def main() -> None:
    """One boot, one command, one status."""
    entered = time.monotonic()
    spec = json.load(sys.stdin)
    said = {name: bytes.fromhex(text) for name, text in spec["frames"].items()}
    console = os.open(spec["console"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with subprocess.Popen(spec["argv"], stdin=subprocess.DEVNULL, stdout=console, stderr=console, env={}) as vmm:
        try:
            with connect(spec["link"], vmm) as link:
                link.settimeout(LIMIT_S)
                buffer = bytearray()
                link.sendall(said["attach"])
                wait_frame(link, buffer, HELLO)
                hello = time.monotonic()
                link.sendall(said["job"])
                status = wait_frame(link, buffer, EXIT)
                ended = time.monotonic()
                link.sendall(said["exit_ack"])
                vmm.wait(LIMIT_S)
        finally:
            vmm.kill()
    print(json.dumps({"main": (ended - entered) * 1000, "hello": (hello - entered) * 1000, "status": status.hex()}))


if __name__ == "__main__":
    main()
