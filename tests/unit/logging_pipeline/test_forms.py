"""Questions whose parameters are too long for an address: the real client sends a form, and the engine takes it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pytest
from clickhouse_connect.driver import httputil

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.engine.forms import MAX_FIELDS, parse_form
from nimbus.model.errors import Refused

TYPE = "multipart/form-data; boundary=edge"


def part(name: str, value: str, more: str = "") -> str:
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'


def test_the_real_client_asks_with_parameters_of_any_length(engine: Endpoint) -> None:
    parts = urlsplit(engine.url)
    pool = httputil.get_pool_manager(num_pools=1)
    client: Any = clickhouse_connect.get_client(
        host=parts.hostname, port=parts.port, username=engine.username, password=engine.password, pool_mgr=pool
    )
    text, numbers = "ü\r\n--edge;'\\" * 3000, list(range(5000))
    told = client.query(
        "SELECT length({numbers:Array(UInt64)}), {text:String} = concat({text:String}, '')",
        parameters={"numbers": numbers, "text": text},
    )
    client.close()
    pool.clear()
    assert told.result_rows == [(5000, 1)]


def test_a_form_is_its_fields() -> None:
    body = part("query", "SELECT\r\n1") + part("param_a", "ü --edge", "\r\nContent-Type: text/plain") + "--edge--\r\n"
    assert parse_form(TYPE, body.encode()) == {"query": "SELECT\r\n1", "param_a": "ü --edge"}


@pytest.mark.parametrize(
    "body",
    {
        "empty": b"",
        "not closed": part("query", "SELECT 1").encode(),
        "something before": b"x" + part("query", "SELECT 1").encode() + b"--edge--",
        "a field twice": (part("query", "SELECT 1") * 2).encode() + b"--edge--",
        "a file": part("query", "1", '; filename="/etc/passwd"').encode() + b"--edge--",
        "no name": b"--edge\r\n\r\nSELECT 1\r\n--edge--",
        "a strange name": part("a b", "1").encode() + b"--edge--",
        "not UTF-8": b'--edge\r\nContent-Disposition: form-data; name="q"\r\n\r\n\xff\r\n--edge--',
        "too many": b"".join(part(f"p{n}", "1").encode() for n in range(MAX_FIELDS + 1)) + b"--edge--",
    }.values(),
)
def test_what_is_no_form_of_texts_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        parse_form(TYPE, body)


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(Refused, match="boundary"):
        parse_form("multipart/mixed; boundary=edge", b"--edge--")
