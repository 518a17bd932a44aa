"""How figures find the machine's limits that were measured beside them."""

from benchmarks.figures import Figure
from benchmarks.limits import Limits
from benchmarks.turns import beside_limits


def test_a_figure_has_the_middle_of_the_limits_around_it() -> None:
    """Those that its program measured between two figures count more than those before and after the program."""
    first, second, last = (Figure(name, 1.0, "ms") for name in ("first", "second", "last"))
    said = [first, second, *Limits(20, 200).figures, last]
    found = list(beside_limits(said, before=Limits(10, 100), after=Limits(40, 400)))
    assert found == [(first, Limits(15, 150)), (second, Limits(15, 150)), (last, Limits(30, 300))]


def test_a_program_that_measures_no_limits() -> None:
    """A peer says its figures alone."""
    figures = [Figure("first", 1.0, "ms"), Figure("second", 2.0, "ms")]
    found = list(beside_limits(figures, before=Limits(10, 100), after=Limits(20, 200)))
    assert found == [(figure, Limits(15, 150)) for figure in figures]
