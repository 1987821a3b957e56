"""A statement that comes as a form (multipart/form-data), as real clients send it where its parameters are many. Pure.

Text fields only: files, which would be tables of their own, are refused. Called by `http`.
"""

from __future__ import annotations

import re

from nimbus.model.errors import Refused

MAX_FIELDS = 1000
_BOUNDARY = re.compile(r'multipart/form-data\s*;\s*boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70})"?\s*', re.IGNORECASE)
_NAME = re.compile(rb'form-data\s*;\s*name="([A-Za-z_][A-Za-z0-9_]{0,127})"\s*', re.IGNORECASE)


def parse_form(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of the form; Refused where it is none or holds more than text."""
    told = _BOUNDARY.fullmatch(content_type)
    if told is None:
        raise Refused("a form must be multipart/form-data with a boundary")
    mark = b"--" + told[1].rstrip().encode()
    first, *parts = (b"\r\n" + body).split(b"\r\n" + mark)
    if first.strip() or not parts or parts[-1].strip() != b"--" or len(parts) - 1 > MAX_FIELDS:
        raise Refused(f"the form is cut short, or has more than {MAX_FIELDS} fields")
    fields: dict[str, str] = {}
    for part in parts[:-1]:
        name, value = _parse_part(part)
        if name in fields:
            raise Refused(f"the form has {name} twice")
        fields[name] = value
    return fields


def _parse_part(part: bytes) -> tuple[str, str]:
    head, separator, value = part.partition(b"\r\n\r\n")
    headers = dict(_split_header(line) for line in head.split(b"\r\n") if line.strip())
    named = _NAME.fullmatch(headers.get(b"content-disposition", b""))
    if not separator or named is None:
        raise Refused("a field of the form has no plain name: files are not served")
    try:
        return named[1].decode(), value.decode()
    except UnicodeDecodeError:
        raise Refused("a field of the form is not UTF-8") from None


def _split_header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()
