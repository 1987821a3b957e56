"""A job of a storm on the fake VMM: beats into a file as long as it lives. Its interface is workload.py's; no imports.

python beating_job.py MARKS NUMBER BEATS EXIT DEAF TALKS
"""

import os
import signal
import sys
import time

BEAT_S = 0.1


def main() -> None:
    file, (number, beats, exit_code, deaf, talks) = sys.argv[1], map(int, sys.argv[2:])
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run = int.from_bytes(os.urandom(6), "big")  # no pid: each VM counts its own from 1
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def mark(word: str) -> None:
        os.write(out, f"{time.time_ns()} {number} {run} {word}\n".encode())

    mark("begin")
    for beat in range(beats):
        mark("beat")
        if talks:
            os.write(1, f"line {beat}\n".encode())
        time.sleep(BEAT_S)
    mark("end")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
