"""Texts that nobody vouches for: JSON and what a terminal shows."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import count, parse_json, printable

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def is_finite(document: Any) -> bool:
    match document:
        case float():
            return math.isfinite(document)
        case list():
            return all(map(is_finite, document))
        case dict():
            return all(map(is_finite, document.values()))
    return True


@given(DOCUMENTS)
def test_documents_are_read_as_they_are_or_refused(document: Any) -> None:
    words = json.dumps(document)
    if is_finite(document):
        assert parse_json(words) == document
    else:
        with pytest.raises(ValueError, match="expected a finite number, found "):
            parse_json(words)


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", None, (1 << 53) + 1, 10**400])
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(ArtifactError, match="expected a number of at least 0"):
        count(value)
    assert [count(value) for value in (0, 1 << 53)] == [0, 1 << 53]


@given(st.text())
def test_terminals_get_no_control_characters_but_line_breaks(words: str) -> None:
    found = printable(words)
    assert len(found) == len(words)
    assert all(shown in (said, "\ufffd") for shown, said in zip(found, words, strict=True))
    assert not {code for code in map(ord, found) if code < 32 or 127 <= code < 160} - {ord("\n")}


def test_escape_sequences_are_shown_and_not_obeyed() -> None:
    assert printable("\x1b]0;title\x07cat\x1b[2J.png\n") == "\ufffd]0;title\ufffdcat\ufffd[2J.png\n"
