"""The generated pages against the code, and the settings classes against the published names and defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import render
from nimbus.runtime.settings import DOCUMENTED_VARIABLES

ROOT = Path(__file__).parents[2]
WORDS = render.read_words()
LATER = {name for names in WORDS["later"].values() for name in names}
READ = {room: {variable.name: variable.default for variable in render.find_variables(room)} for room in render.ROOMS}


@pytest.mark.parametrize("page", sorted(render.PAGES))
def test_a_generated_page_is_what_the_code_says_today(page: str) -> None:
    written = (ROOT / "docs" / page).read_text()
    assert written == render.PAGES[page](), "run .venv/bin/python docs/render.py and commit the page"


@pytest.mark.parametrize("room", sorted(render.ROOMS))
def test_every_variable_of_a_room_says_what_it_means(room: str) -> None:
    mute = [variable.name for variable in render.find_variables(room) if not variable.meaning]
    assert mute == []


def test_no_meaning_is_written_for_a_field_that_is_gone_or_speaks_for_itself() -> None:
    idle = [
        f"{room}.{name}"
        for room, meanings in WORDS["meaning"].items()
        for name in meanings
        if room != "*"
        if name not in (fields := render.ROOMS[room][1].model_fields) or fields[name].description
    ]
    assert idle == []


@pytest.mark.parametrize(
    ("room", "name", "announced"),
    [(room, name, default) for room, table in WORDS["documented"].items() for name, default in table.items()],
)
def test_a_published_variable_has_its_published_default_or_a_reason(room: str, name: str, announced: str) -> None:
    if name in LATER:
        assert name not in READ[room], f"{name} is read now: take it off the list of later ones"
    elif name in WORDS["corrected"]:
        assert READ[room][name] != announced, f"{name} has its published default again: the correction is gone"
    else:
        assert READ[room].get(name) == announced


def test_what_is_corrected_was_published() -> None:
    published = {name for table in WORDS["documented"].values() for name in table}
    assert set(WORDS["corrected"]) <= published


def test_what_waits_for_a_later_part_is_read_by_no_room() -> None:
    assert {name for table in READ.values() for name in table} & LATER == set()


def test_no_room_is_told_that_another_rooms_variable_is_unknown() -> None:
    known = {name for table in READ.values() for name in table} | LATER | set(WORDS["command"])
    assert known - DOCUMENTED_VARIABLES == set()


def test_every_variable_that_the_code_names_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    listed = set(re.findall(r"NIMBUS_[A-Z0-9_]*[A-Z0-9]", page))
    named = {
        name: file.relative_to(ROOT)
        for file in (ROOT / "nimbus").rglob("*.py")
        for name in re.findall(r"\bNIMBUS_[A-Z0-9_]*[A-Z0-9]\b(?!_)", file.read_text())
    }
    assert {name: file for name, file in named.items() if name not in listed} == {}


def test_every_variable_that_the_other_pages_name_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    listed = set(re.findall(r"NIMBUS_[A-Z0-9_]*[A-Z0-9]", page))
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for file in pages for name in re.findall(r"\bNIMBUS_[A-Z0-9_]*[A-Z0-9]\b(?!_)", file.read_text())}
    assert named - listed == set()
