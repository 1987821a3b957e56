"""How a Firecracker ended, in words: its exit codes are its own, and most of them name one cause.

Pure. Called by life.py for the one sentence that a person is told.
"""

from __future__ import annotations

from nimbus.wire.keeper import VmmExit

NAME = "firecracker"
BAD_SYSCALL = 148
_REASONS = {
    0: "its guest shut down or rebooted",
    1: "an error of its own; its last words say which",
    2: "an error that it did not foresee; its last words say which",
    BAD_SYSCALL: "it made a system call that its filter forbids: a fault of this release, or an attack by its guest",
    149: "a file that it had mapped became shorter, or memory pages ran out (SIGBUS)",
    150: "it touched memory that is not its own (SIGSEGV)",
    151: "a file would have grown beyond its limit (SIGXFSZ)",
    152: "its configuration was bad",
    153: "its arguments were bad",
    154: "its time on the CPU was over (SIGXCPU)",
    155: "whoever read its output has gone (SIGPIPE)",
    156: "it was hung up on (SIGHUP)",
    157: "it met an instruction that this CPU has not (SIGILL)",
}
_SIGNALS = {6: "it gave itself up (abort)"}


def explain_exit(backend: str, told: VmmExit) -> str:
    """The cause that an exit names; nothing where the backend is another, or the exit says it all."""
    if backend != NAME or told.code is None:
        return ""
    return (_REASONS if told.kind == "exited" else _SIGNALS).get(told.code, "")
