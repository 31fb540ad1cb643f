from __future__ import annotations

from schema.base import Frozen


class Point(Frozen):
    x: float = 0.0
    y: float = 0.0


def test_records_share_the_names_of_what_was_given() -> None:
    one, other = Point(x=1.0), Point(x=2.0)
    assert one.model_fields_set is other.model_fields_set
    assert one.model_copy(update={"y": 3.0}).model_fields_set == {"x", "y"}
    assert one.model_fields_set == other.model_fields_set == {"x"}
    assert Point(y=1.0).model_fields_set == {"y"}
    assert Point(x=1.0) == one
