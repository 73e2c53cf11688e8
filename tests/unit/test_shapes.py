"""A value is of its shape, or is refused by a word that names the place."""

from __future__ import annotations

import pytest

from statepipe.shapes import (
    LARGEST,
    Misshapen,
    Shape,
    anything,
    check,
    fields,
    flag,
    many,
    maybe,
    number,
    one_of,
    parse,
    table,
    text,
    whole,
)

GUEST = fields(
    {"name": maybe(text(8)), "disks": many(fields({"path": text()}, {"size": whole()}), most=2)},
    {"runs": flag, "side": one_of("here", "there"), "rates": table(number, most=2), "rest": anything},
)

GOOD = [
    '{"name": null, "disks": []}',
    '{"name": "vm", "disks": [{"path": "/a", "size": 9223372036854775807}, {"path": "\\udcff"}], "later": [[]]}',
    '{"name": "12345678", "disks": [], "runs": false, "side": "here", "rates": {"a": 1, "b": 0.5}, "rest": {"a": [1]}}',
]

BAD = [
    ("[]", "it is a list, where an object is expected"),
    ('{"disks": []}', "name is missing"),
    ('{"name": 5, "disks": []}', "name is 5, where text of at most 8 characters is expected"),
    ('{"name": "123456789", "disks": []}', "name is '123456789', where text of at most 8"),
    ('{"name": "vm", "disks": {}}', "disks is an object, where a list of at most 2"),
    ('{"name": "vm", "disks": [{}, {}, {}]}', "disks is a list, where a list of at most 2"),
    ('{"name": "vm", "disks": [{"path": "/a"}, {"path": null}]}', r"disks\[1\].path is null, where text"),
    ('{"name": "vm", "disks": [{"path": "/a", "size": -1}]}', r"disks\[0\].size is -1, where a whole number"),
    ('{"name": "vm", "disks": [{"path": "/a", "size": true}]}', r"disks\[0\].size is True, where a whole number"),
    ('{"name": "vm", "disks": [{"path": "/a", "size": 1.5}]}', r"disks\[0\].size is 1.5, where a whole number"),
    ('{"name": "vm", "disks": [{"path": "/a", "size": 9223372036854775808}]}', r"disks\[0\].size is 92233720368547"),
    ('{"name": null, "disks": [], "runs": 1}', "runs is 1, where true or false"),
    ('{"name": null, "disks": [], "side": "up"}', "side is 'up', where here or there"),
    ('{"name": null, "disks": [], "side": []}', "side is a list, where here or there"),
    ('{"name": null, "disks": [], "rates": {"a": "1"}}', "rates.a is '1', where a number"),
    ('{"name": null, "disks": [], "rates": {"a": 1e999}}', "rates.a is inf, where a number"),
    ('{"name": null, "disks": [], "rates": {"a": 1, "b": 2, "c": 3}}', "rates is an object, where an object of"),
    ('{"name": NaN, "disks": []}', "NaN is not a JSON number"),
    ("{", "not JSON"),
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("1" * 100_000, "not JSON"),
]


@pytest.mark.parametrize("json", GOOD)
def test_what_is_of_its_shape_is_handed_on(json: str) -> None:
    assert parse(json, GUEST) == parse(json.encode(), anything)


@pytest.mark.parametrize(("json", "reason"), BAD, ids=[reason[:40] for _, reason in BAD])
def test_what_is_not_is_refused_by_its_place(json: str, reason: str) -> None:
    with pytest.raises(Misshapen, match=reason):
        parse(json, GUEST)


def test_what_is_no_utf8_is_no_json() -> None:
    with pytest.raises(Misshapen, match="not JSON"):
        parse(b"\xff\xfe\xfd", anything)


@pytest.mark.parametrize("shape", [whole(), number, text(), flag, one_of("a"), many(anything, 1), table(anything, 1)])
def test_null_is_of_no_shape_but_maybe(shape: Shape) -> None:
    with pytest.raises(Misshapen):
        check(None, shape)
    assert check(None, maybe(shape)) is None


def test_a_value_that_is_shown_is_shortened() -> None:
    with pytest.raises(Misshapen) as caught:
        check({"n" * 1000: "x" * 100_000}, table(whole(), 1))
    assert len(str(caught.value)) < 300


def test_bounds_are_inclusive() -> None:
    assert check(LARGEST, whole()) == LARGEST
    assert check(3, whole(3, 3)) == 3
