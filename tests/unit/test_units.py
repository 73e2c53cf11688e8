"""Sizes as people write them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import UsageError
from statepipe.units import format_rate, format_size, number_in, parse_rate, parse_size, rate_word

GOOD = {
    "0": 0,
    "4096": 4096,
    "64K": 65536,
    "64k": 65536,
    "64KB": 65536,
    "64KiB": 65536,
    "1.5GiB": 3 << 29,
    "2g": 2 << 30,
    "1 M": 1 << 20,
    " 7 ": 7,
    "5B": 5,
    "3T": 3 << 40,
    "1P": 1 << 50,
    "0.1k": 102,
    "9007199254740993": (1 << 53) + 1,
    "999999999999999999P": 999_999_999_999_999_999 << 50,
}


@given(st.integers(1, 999_999_999_999_999_999) | st.sampled_from([1 << 10, 100 << 20, 3 << 29, 2 << 40, 1 << 50]))
def test_a_rate_is_written_as_it_is_understood(rate: int) -> None:
    assert parse_rate(rate_word(rate)) == rate
    assert rate_word(100 << 20) == "100M"


@pytest.mark.parametrize("text", GOOD)
def test_a_size(text: str) -> None:
    assert parse_size(text) == GOOD[text]


BAD = ["", "K", "-1", "+1", "1e9", "1.", ".5", "5iB", "1KK", "1 2", "0x10", "1Z", "nan", "inf", "١٢", "1" * 400, "1\n2"]


@pytest.mark.parametrize("text", BAD)
def test_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_size(text)
    assert caught.value.hint


@settings(deadline=None)
@given(st.text(alphabet="0123456789.kKmMgGtTpPiIbB -", max_size=12))
def test_anything_is_a_size_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert parse_size(text) >= 0


@settings(deadline=None)
@given(st.integers(0, 10**17), st.sampled_from("kmgtp"))
def test_sizes_are_exact(number: int, letter: str) -> None:
    assert parse_size(f"{number}{letter}") == number << 10 * ("kmgtp".index(letter) + 1)


@pytest.mark.parametrize(
    ("count", "text"),
    {0: "0 B", 812: "812 B", 3565158: "3.4 MiB", 1 << 30: "1.0 GiB", 200 << 20: "200 MiB", 5 << 50: "5120 TiB"}.items(),
)
def test_a_size_for_people(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("-1", -1), ("0007", 7), ("8", None), ("9" * 5000, None)])
def test_a_number_is_one_between_two(text: str, number: int | None) -> None:
    assert number_in(text, -1, 7) == number


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e3", " 1", "+1", "\u0663"])
def test_no_numbers(text: str) -> None:
    assert number_in(text, 0, 99) is None


RATES = {
    "100M": 100 << 20,
    "1g": 1 << 30,
    "1.5GiB/s": 3 << 29,
    "80Mbit": 10_000_000,
    "1Gbit/s": 125_000_000,
    "2.5gbit": 312_500_000,
    "56kbit": 7000,
    "8bit": 1,
    "1000": 1000,
    "unlimited": None,
    "0": None,
    "0Mbit": None,
}


@pytest.mark.parametrize(("text", "rate"), RATES.items())
def test_rates(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "/s", "fast", "-5M", "5M/m", "5Mibit", "bit", "7bit", "0.0001", "1e6"])
def test_no_rates(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rate(text)


def test_rates_for_people() -> None:
    assert format_rate(None) == "unlimited"
    assert format_rate(3 << 20) == "3.0 MiB/s"
