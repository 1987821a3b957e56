"""Guest bytes on a terminal: what could drive it is taken out, colours stay.

Pure. Called by the commands that show what a guest wrote.
"""

from __future__ import annotations

import re

# control strings (OSC, DCS, SOS, PM, APC) with their content, CSI sequences, and any other escape
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|(?=\x1b)|$)"
    r"|(?:\x1b\[|\x9b)(?P<parameters>[0-?]*)[ -/]*(?P<final>[@-~])?"
    r"|\x1b[ -/]*[0-~]?"
)
# the other controls, and the overrides that make a terminal show something else than is there
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_RESET = "\x1b[0m"


def clean_line(text: str) -> str:
    """The text without what could drive a terminal; colours stay and end with the line."""
    coloured = False

    def keep_colour(match: re.Match[str]) -> str:
        nonlocal coloured
        if match["final"] == "m" and re.fullmatch(r"[0-9;:]*", match["parameters"]):
            coloured = True
            return f"\x1b[{match['parameters']}m"
        return ""

    text = _CONTROLS.sub("", _ESCAPES.sub(keep_colour, text))
    return text + _RESET if coloured else text
