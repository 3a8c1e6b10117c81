"""Numbers as people see them: never a wrong one by rounding."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saesync.inert import apart, exact, measured, number

sizes = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "bound", "shown"),
    [
        (0.188, 0.8, ("0.188", "0.8")),
        (0.69982, 0.7, ("0.6998", "0.7")),
        (0.97712, 0.9995, ("0.977", "0.9995")),  # not "asks for 1"
        (0.6996, 0.69965, ("0.6996", "0.69965")),  # not 0.7 < 0.69965
        (1234.567, 1000, ("1,235", "1,000")),  # not 1.23e+03 > 1e+03
        (65536.25, 65536, ("65,536.2", "65,536")),
        (3.2e-7, 1e-7, ("3.2e-07", "1e-07")),
    ],
)
def test_a_missed_bound_is_shown_as_it_was_asked_for(value: float, bound: float, shown: tuple[str, str]) -> None:
    assert apart(value, bound) == shown


@given(value=sizes, bound=sizes)
def test_what_is_shown_misses_the_bound_on_the_same_side(value: float, bound: float) -> None:
    near, limit = (float(text.replace(",", "")) for text in apart(value, bound))
    assert (near < limit, near > limit) == (value < bound, value > bound) or math.isclose(
        value, bound, rel_tol=1e-14, abs_tol=1e-300
    )


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (0.81234, 0.0031, "0.812 ± 0.003"),
        (31.012, 0.084, "31.01 ± 0.08"),
        (32.0, 0.0, "32 ± 0"),
        (12345.678, 21.0, "12,346 ± 21"),
        (3.21e-7, 2.4e-9, "3.21e-07 ± 2e-09"),  # not 0.000000 ± 0.000000: the mse of an embedding, say
        (0.8123456, 3e-9, "0.812346 ± 3e-09"),  # an error that is not 0
        (0.0371, None, "0.0371"),
    ],
)
def test_a_measured_value_keeps_its_digits(value: float, stderr: float | None, shown: str) -> None:
    assert measured(value, stderr) == shown


def test_what_somebody_wrote_is_not_rounded() -> None:
    assert (exact(0.9995), number(0.9995)) == ("0.9995", "1")
    assert [exact(value) for value in (0, 16384, 0.1, 1e-6, 1e300)] == ["0", "16,384", "0.1", "1e-06", "1e+300"]
