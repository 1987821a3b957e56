"""The log store opened: what its client says of failures never shows what a reader asked for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from pydantic import SecretStr

from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.opening import open_store
from nimbus.model.errors import Unavailable
from tests.unit.logging_pipeline.rig import run_engine


async def test_a_store_that_fails_or_dies_is_not_logged_with_what_a_reader_searched_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(90):
        engines = ExitStack()
        engine = engines.enter_context(run_engine(tmp_path / "store"))
        settings = StoreSettings(
            clickhouse_url=engine.url,
            clickhouse_username=engine.username,
            clickhouse_password=SecretStr(engine.password),
        )
        async with open_store(settings) as table:
            await table.ping()
            with pytest.raises(Unavailable):
                await table.select("SELECT throwIf(1, {text:String})", {"text": "what-a-reader-searched"})
            engines.close()
            with pytest.raises(Unavailable):
                await table.select("SELECT {text:String} AS text", {"text": "what-a-reader-searched"})
    assert caplog.text == ""
