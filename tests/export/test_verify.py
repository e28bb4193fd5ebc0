import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.manifest import Quantisation, TensorSpec
from export.errors import VerificationError
from export.verify import check_float, compare, dequantize, quantize, sqnr_db, to_engine


def _samples(count=6):
    generator = np.random.default_rng(0)
    return [[generator.standard_normal((1, 5)).astype(np.float32)] for _ in range(count)]


@given(signal=st.floats(1e-6, 1e6), ratio=st.floats(1e-6, 1e6))
def test_sqnr_is_ten_times_the_logarithm_of_the_ratio(signal, ratio):
    assert sqnr_db(signal, signal / ratio) == pytest.approx(min(200.0, 10 * np.log10(ratio)), abs=1e-6)


def test_equal_runners_agree_fully():
    found = compare(lambda x: x, lambda x: [x[0].copy()], _samples(), [0] * 6)
    assert (found.agreement, found.sqnr_db, found.count) == (1.0, 200.0, 6)
    assert found.accuracy == found.reference_accuracy


def test_accuracy_and_agreement_are_shares_of_the_samples():
    samples = _samples(4)
    labels = [int(one[0].argmax()) for one in samples]
    found = compare(lambda x: x, lambda x: [-x[0]], samples, labels)
    assert (found.reference_accuracy, found.accuracy, found.agreement) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_outputs_that_are_no_numbers_are_an_error(bad):
    with pytest.raises(VerificationError, match="fp16 overflows"):
        compare(lambda x: x, lambda x: [x[0] * bad], _samples())


def test_outputs_of_another_shape_are_an_error():
    with pytest.raises(VerificationError, match=r"\(1, 5\).*\(1, 4\)"):
        compare(lambda x: x, lambda x: [x[0][:, :4]], _samples())


def test_a_float_conversion_that_is_far_off_is_an_error():
    found = compare(lambda x: x, lambda x: [x[0] * np.float32(1.01)], _samples())
    with pytest.raises(VerificationError, match="Wanted at least 60 dB between net and its fp32 export, found 40"):
        check_float(found, precision="fp32", name="net")
    check_float(found, precision="fp16", name="net")


@given(value=st.floats(-12.5, 12.5, width=32), scale=st.sampled_from([0.1, 0.25]), zero=st.integers(-3, 3))
def test_quantising_and_back_errs_by_half_a_step_at_most(value, scale, zero):
    spec = TensorSpec(
        name="x", engine_name="x", dtype="int8", shape=(1,), quantisation=Quantisation(scale=scale, zero_point=zero)
    )
    back = dequantize(quantize(np.array([value], np.float32), spec), spec)
    assert abs(float(back[0]) - value) <= scale / 2 + abs(zero) * scale + 1e-5 if abs(value) > 12 else scale / 2 + 1e-5


def test_channel_first_inputs_are_moved_for_a_channel_last_engine():
    def spec(shape, layout):
        return TensorSpec(name="x", engine_name="x", dtype="float32", shape=shape, layout=layout)

    picture = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    (moved,) = to_engine([picture], [spec((1, 2, 3, 4), "nchw")], [spec((1, 3, 4, 2), "nhwc")])
    assert moved.flags.c_contiguous
    np.testing.assert_array_equal(moved, picture.transpose(0, 2, 3, 1))
