"""Pictures become tensors: the arithmetic, the layouts, and pictures that are no pictures."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_runtime.manifest import Preprocessing, Quantisation, TensorSpec
from edge_runtime.preprocess import ImageError, decode_image, encode_picture, prepare

CROP = Preprocessing(crop=(8, 8), mean=(127.0,) * 3, std=(128.0,) * 3)
FLOAT = TensorSpec(name="x", engine_name="x", dtype="float32", shape=(1, 3, 8, 8), layout="nchw", semantic="image")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_arithmetic_is_pixel_minus_mean_over_std():
    image = picture(8, 8)
    tensor = prepare(image, FLOAT, CROP)
    np.testing.assert_array_equal(tensor[0], ((image.astype(np.float32) - 127) / 128).transpose(2, 0, 1))


def test_the_crop_is_the_centre():
    image = picture(12, 10)
    tensor = prepare(image, FLOAT, CROP)
    np.testing.assert_array_equal(tensor, prepare(np.ascontiguousarray(image[2:10, 1:9]), FLOAT, CROP))


def test_both_layouts_hold_the_same_values():
    image = picture(8, 8)
    nhwc = TensorSpec(name="x", engine_name="x", dtype="float32", shape=(1, 8, 8, 3), layout="nhwc")
    np.testing.assert_array_equal(prepare(image, nhwc, CROP).transpose(0, 3, 1, 2), prepare(image, FLOAT, CROP))


def test_the_short_side_is_resized():
    resize = Preprocessing(resize_short=8, crop=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    grey = np.full((32, 48, 3), 77, np.uint8)
    assert (prepare(grey, FLOAT, resize) == 77).all()


@given(scale=st.floats(0.004, 1.0), zero_point=st.integers(0, 255), seed=st.integers(0, 99))
def test_a_quantised_input_is_within_half_a_step_or_at_a_limit(scale, zero_point, seed):
    spec = TensorSpec(
        name="x", engine_name="x", dtype="uint8", shape=(1, 3, 8, 8), layout="nchw",
        quantisation=Quantisation(scale=scale, zero_point=zero_point),
    )  # fmt: skip
    image = picture(8, 8, seed)
    stored = prepare(image, spec, CROP)
    real = prepare(image, FLOAT, CROP)
    inside = (stored > 0) & (stored < 255)
    error = np.abs((stored.astype(np.float64) - zero_point) * scale - real)
    assert (error[inside] <= scale / 2 * 1.001 + 1e-6).all()


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_what_is_no_rgb_picture_is_refused(image):
    with pytest.raises(ImageError, match="RGB"):
        prepare(image, FLOAT, CROP)


def test_a_picture_smaller_than_the_crop_is_refused():
    with pytest.raises(ImageError, match="at least"):
        prepare(picture(4, 9), FLOAT, CROP)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_decode(kind):
    stream = io.BytesIO()
    Image.fromarray(picture(20, 30)).save(stream, kind)
    assert decode_image(stream.getvalue()).shape == (20, 30, 3)


@pytest.mark.parametrize("low", [0, 255])
def test_grey_of_16_bits_becomes_its_upper_8(low):
    stream = io.BytesIO()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 256 + low).save(stream, "PNG")
    assert stream.getvalue()[24:26] == bytes((16, 0))  # bits, grey
    decoded = decode_image(stream.getvalue())
    assert decoded.dtype == np.uint8
    assert (decoded == grey[..., np.newaxis]).all()
    assert decoded.shape == (16, 16, 3)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    stream = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(stream, "PNG")
    with pytest.raises(ImageError, match="4000 x 4000"):
        decode_image(stream.getvalue(), max_pixels=1_000_000)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_picture(data):
    with pytest.raises(ImageError):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_picture_is_refused(kind):
    stream = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(stream, kind)
    with pytest.raises(ImageError):
        decode_image(stream.getvalue()[: len(stream.getvalue()) // 2])


def test_a_picture_is_encoded_as_the_plan_says():
    image = np.zeros((40, 60, 3), np.uint8)
    preprocessing = Preprocessing(resize_short=20, crop=(20, 20), mean=(0.0,) * 3, std=(1.0,) * 3)
    for form, magic in (("jpeg:75", b"\xff\xd8"), ("webp:50", b"RIFF")):
        data = encode_picture(image, preprocessing, form)
        assert data.startswith(magic)
        assert decode_image(data).shape == (20, 30, 3)
    for bad in ("raw:0", "jpeg", "jpeg:high", "png:9"):
        with pytest.raises(ImageError, match="jpeg:75"):
            encode_picture(image, preprocessing, bad)
