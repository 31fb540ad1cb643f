from __future__ import annotations

from optimizer.analysis import compare
from tests.optimizer.worlds import a_run, metrics, space_of

SPACE = space_of()


def test_only_what_differs_is_shown() -> None:
    a = a_run(0, SPACE.complete({"network_dim": 8}), epochs=[metrics(40.0), metrics(60.0)])
    b = a_run(1, SPACE.complete({"network_dim": 16, "conv_alpha": 4.0}), epochs=[metrics(70.0, photorealism=20.0)])
    found = compare(a, b)
    assert found.parameters == {"network_dim": (8, 16)}
    assert found.metrics["overall"] == (60.0, 70.0)
    assert found.metrics["photorealism"] == (3.0, 20.0)
    assert "palette_size" not in found.metrics
    assert found.curves == (((1, 40.0), (2, 60.0)), ((1, 70.0),))


def test_a_run_without_pictures_has_no_metrics() -> None:
    found = compare(a_run(0, SPACE.complete({})), a_run(1, SPACE.complete({}), curve=[50]))
    assert found.metrics["overall"] == (None, 50.0)
    assert found.quality == (None, 50.0)
