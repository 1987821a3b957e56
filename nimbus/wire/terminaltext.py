"""One line of hostile output as a terminal would show it at its end: text, tabs and colours, nothing that drives it.

Pure, and linear in the line's length. Carriage returns and backspaces are played out, so that of a progress bar its
last state is left. Links, titles, the clipboard, cursor and screen control, 8-bit controls and what turns the direction
of text are taken out. Called by the commands that show what a guest wrote, and by the log pipeline's downloads.

The model has one row without a right margin: a tab, a wide and a combining character each count as one column. Colours
end with the line. A line break inside a line is shown as a sign, since it would make two lines of one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

RESET = "\x1b[0m"
_FAR = 256  # columns that a cursor movement may lead beyond the text: no short sequence buys much work
_SGR_CHARS = 64  # of one colour sequence; real ones have a third of it
_LINE_BREAK_SIGN = "\u240a"

# C0 but tab, DEL, C1, line separators, marks and overrides of direction, byte order mark, halves of surrogate pairs
_DRIVING = "\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff"
_find_driving = re.compile(f"[{_DRIVING}]").search
_find_tokens = re.compile(
    f"(?P<run>[^{_DRIVING}]+)"
    # control strings (OSC, DCS, SOS, PM, APC) with their content, up to their end, the next escape or the line's end
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b\[|\x9b)(?P<parameters>[0-?]*)(?P<between>[ -/]*)(?P<final>[@-~])?"
    r"|\x1b[ -/]*[0-~]?"
    r"|(?P<control>.)",
    re.DOTALL,
).finditer
_is_colour = re.compile(rf"[0-9;:]{{0,{_SGR_CHARS}}}").fullmatch

# colour codes that set an attribute: those that end it. Concealed text (8) is left out: a log hides nothing
_ATTRIBUTES = {1: "22", 2: "22", 3: "23", 4: "24", 5: "25", 7: "27", 9: "29", 53: "55"}
_SAME = {"6": 5, "21": 4}  # blinking fast, underlined twice
_FOREGROUND = frozenset({*range(30, 38), 39, *range(90, 98)})
_BACKGROUND = frozenset({*range(40, 48), 49, *range(100, 108)})
_EXTENDED = frozenset({"38", "48", "58"})  # an underline's own colour is read over
_COLOUR_WORDS = {"5": 2, "2": 4}  # `5;N` and `2;R;G;B`


class Style(NamedTuple):
    """How text looks: attributes by their codes in rising order, colours as the codes that set them."""

    attributes: tuple[int, ...] = ()
    foreground: str = ""
    background: str = ""


PLAIN = Style()


def show_line(text: str) -> str:
    """What a terminal shows of the line at its end: text, tabs, and colours that end with it."""
    if not _find_driving(text):
        return text
    cells, styles = _play(text)
    shown: list[str] = []
    current, begin = PLAIN, 0
    for place, style in enumerate(styles):
        if style != current:
            shown += ("".join(cells[begin:place]), _render_change(current, style))
            current, begin = style, place
    shown.append("".join(cells[begin:]))
    if current != PLAIN:
        shown.append(RESET)
    return "".join(shown)


def plain_text(text: str) -> str:
    """The same without colours."""
    return "".join(_play(text)[0]) if _find_driving(text) else text


def _play(text: str) -> tuple[list[str], list[Style]]:
    """The cells of the row after the whole line was written, and the style of each."""
    cells: list[str] = []
    styles: list[Style] = []
    column, style = 0, PLAIN
    for token in _find_tokens(text):
        run, final = token["run"] or _sign(token["control"]), token["final"]
        if run:
            if column > len(cells):
                styles += [PLAIN] * (column - len(cells))
                cells += " " * (column - len(cells))
            cells[column : column + len(run)] = run
            styles[column : column + len(run)] = [style] * len(run)
            column += len(run)
        elif token["control"] == "\r":
            column = 0
        elif token["control"] == "\b":
            column = max(0, column - 1)
        elif final is not None and not token["between"]:
            parameters = token["parameters"]
            if final == "m":
                style = apply_colour(style, parameters) if _is_colour(parameters) else style
            elif final in "KJ" and parameters in ("", "0"):
                del cells[column:], styles[column:]
            elif final == "K" and parameters == "2":
                cells, styles = [], []
            else:
                column = _move(column, len(cells), final, parameters)
    return cells, styles


def _sign(control: str | None) -> str:
    if control == "\n":
        return _LINE_BREAK_SIGN
    return "\ufffd" if control and "\ud800" <= control <= "\udfff" else ""


def _move(column: int, length: int, final: str, parameters: str) -> int:
    """Where the cursor is after a movement within its row; where it was for every other sequence."""
    if final not in "CDG" or not (parameters == "" or (parameters.isdigit() and len(parameters) < 6)):
        return column
    count = max(1, int(parameters or "1"))
    target = {"C": column + count, "D": column - count, "G": count - 1}[final]
    return max(0, min(target, max(length, _FAR)))


@lru_cache(maxsize=1024)
def apply_colour(style: Style, parameters: str) -> Style:
    """The style after one colour sequence; codes that are unknown change nothing."""
    codes = parameters.split(";")
    while codes:
        head, *inside = codes.pop(0).split(":")
        code = head.lstrip("0")
        if code in _EXTENDED:
            count = _COLOUR_WORDS.get(codes[0], 1) if codes and not inside else 0
            words, codes = inside or codes[:count], codes[count:]
            colour = _read_extended(words)
            if colour and code == "38":
                style = style._replace(foreground=f"{code};{colour}")
            elif colour and code == "48":
                style = style._replace(background=f"{code};{colour}")
        else:
            style = _apply_code(style, "24" if code == "4" and inside == ["0"] else code)
    return style


def _read_extended(words: list[str]) -> str:
    """`5;N` or `2;R;G;B` in canonical form; nothing where it is no colour. A colour space may stand before R."""
    kind, *numbers = words or [""]
    if kind == "2" and len(numbers) > 3:
        numbers = numbers[1:4]
    wanted = {"5": 1, "2": 3}.get(kind)
    good = [number for number in numbers if number.isdigit() and len(number) <= 3 and int(number) <= 255]
    return ";".join([kind, *(str(int(number)) for number in good)]) if len(good) == len(numbers) == wanted else ""


def _apply_code(style: Style, code: str) -> Style:
    if code == "":
        return PLAIN
    number = _SAME.get(code) or (int(code) if len(code) <= 3 else -1)
    if number in _ATTRIBUTES:
        return Style(tuple(sorted({*style.attributes, number})), style.foreground, style.background)
    if number in _FOREGROUND:
        return style._replace(foreground="" if number == 39 else code)
    if number in _BACKGROUND:
        return style._replace(background="" if number == 49 else code)
    left = tuple(each for each in style.attributes if _ATTRIBUTES[each] != code)
    return Style(left, style.foreground, style.background)


def _render_change(before: Style, after: Style) -> str:
    """The sequence that makes the style after out of the style before."""
    if after == PLAIN:
        return RESET
    codes = [*map(str, after.attributes), after.foreground, after.background]
    begin = [] if before == PLAIN else ["0"]
    return f"\x1b[{';'.join([*begin, *filter(None, codes)])}m"
