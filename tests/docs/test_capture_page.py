"""docs/capture.md names every record that a reader knows, with its facts, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tlx.proof.checked import ENGINE_MANIFEST, ENGINE_RECORDS, MANIFEST, MUST, RECORDS

PAGE = (Path(__file__).parents[2] / "docs" / "capture.md").read_text(encoding="utf-8")
NUMBERS = {"EPOCH": "0000", "BATCH": "0000", "NUMBER": "0000", "STEP": "0000", "RUN": "0", "SIZE": "45"}
TABLES = [(name, table) for name, table in (("tlx", RECORDS), ("an engine", ENGINE_RECORDS))]


def rows(section: str) -> dict[str, str]:
    """The rows of a section's table by each key in the first cell, with a number in place of a word in capitals."""
    text = PAGE.partition(f"### Records of {section}\n")[2].partition("\n### ")[0]
    found = {}
    for line in text.splitlines():
        for key in re.findall(r"`(P\d[^`]*)`", line.split("|")[1]) if line.startswith("| `") else ():
            found[re.sub("|".join(NUMBERS), lambda word: NUMBERS[word[0]], key)] = line
    return found


@pytest.mark.parametrize(("section", "table"), TABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_record_is_named_with_its_facts(section: str, table: tuple[tuple[str, dict[str, object]], ...]) -> None:
    named = rows(section)
    for pattern, facts in table:
        lines = [line for key, line in named.items() if re.fullmatch(pattern, key)]
        assert lines, f"docs/capture.md names no record {pattern}"
        missing = [fact for fact in facts if any(f"`{fact.removesuffix('?')}`" not in line for line in lines)]
        assert not missing, f"docs/capture.md, {pattern}: {missing}"


@pytest.mark.parametrize(("section", "table"), TABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_no_record_is_named_that_a_reader_refuses(section: str, table: tuple[tuple[str, object], ...]) -> None:
    unknown = [key for key in rows(section) if not any(re.fullmatch(pattern, key) for pattern, _ in table)]
    assert rows(section) and not unknown


def test_every_key_of_the_manifest_is_named() -> None:
    section = PAGE.partition("\nThe manifest:\n")[2].partition("\n### ")[0]
    names = [*MANIFEST, *ENGINE_MANIFEST, *MUST]
    assert [name for name in names if f"`{name.removesuffix('?')}`" not in section] == []
