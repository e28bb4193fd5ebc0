"""BD-rate and calibration against SciPy and by their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from split.quality import CurveError, accuracy, bd_rate, calibration_error, monotone_slopes

points = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.01, 3)), min_size=2, max_size=8)


@given(points, st.floats(0.1, 10))
def test_bd_rate_of_a_scaled_curve_is_the_scale(steps, factor):
    quality = np.cumsum([a for a, _ in steps])
    rate = np.exp(np.cumsum([b for _, b in steps]))
    assert bd_rate((rate, quality), (rate * factor, quality)).percent == pytest.approx(100 * (factor - 1), abs=1e-6)


@given(points)
def test_slopes_equal_scipys(steps):
    x, y = np.cumsum([a for a, _ in steps]), np.cumsum([b - 1 for _, b in steps])
    assert monotone_slopes(x, y) == pytest.approx(PchipInterpolator(x, y).derivative()(x), rel=1e-6, abs=1e-6)


def test_bd_rate_equals_scipys_integrals_on_a_partial_overlap():
    reference = [900, 1500, 2600, 5000, 9000], [60.0, 66, 70, 73, 74]
    tested = [500, 900, 1600, 3000], [58.0, 65, 71, 73.5]
    found = bd_rate(reference, tested)
    areas = [PchipInterpolator(q, np.log(r)).integrate(60, 73.5) for r, q in (reference, tested)]
    assert found.percent == pytest.approx(100 * (np.exp((areas[1] - areas[0]) / 13.5) - 1))
    assert (found.low, found.high) == (60, 73.5)
    assert found.percent < -35


def test_beaten_points_do_not_count():
    reference = [100, 200, 400], [50, 60, 65]
    assert bd_rate(reference, ([100, 150, 200, 400], [50, 49, 60, 65])).percent == pytest.approx(0)


def test_curves_that_hardly_overlap_are_refused():
    with pytest.raises(CurveError, match="50 to 60 and 58 to 70"):
        bd_rate(([10, 20], [50, 60]), ([10, 20], [58, 70]))
    with pytest.raises(CurveError, match="at least 2 points"):
        bd_rate(([10, 20], [50, 40]), ([10, 20], [50, 60]))
    with pytest.raises(CurveError, match="above 0"):
        bd_rate(([0, 20], [50, 40]), ([10, 20], [50, 60]))


def test_calibration_error_of_known_cases():
    labels = np.array([0, 0, 1, 1])
    sure = np.array([[50.0, 0]] * 4)
    assert accuracy(sure, labels) == 0.5
    assert calibration_error(sure, labels) == pytest.approx(0.5)
    fair = np.zeros((4, 2))
    assert calibration_error(fair, labels) == pytest.approx(0.0)
