import pickle
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from openfino.images.read import ImageReadError, as_unit_float, count_channels, read_image
from openfino.procedural import draw_image, image_name

HEIGHT, WIDTH = 5, 7


def ramp(*shape, dtype=np.uint8):
    """Values that differ everywhere, so that a transposed or flipped axis shows."""
    return (np.arange(np.prod(shape)) % np.iinfo(dtype).max).astype(dtype).reshape(shape)


def write_png(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif"])
def test_lossless_colour_files_keep_every_value(tmp_path, suffix):
    pixels = ramp(HEIGHT, WIDTH, 3)
    path = tmp_path / f"image.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, pixels, photometric="rgb")
    else:
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image([path])
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.moveaxis(pixels, 2, 0))
    assert image.flags.writeable


def test_modes_of_pillow_become_grey_or_colour(tmp_path):
    grey, colour = ramp(HEIGHT, WIDTH), ramp(HEIGHT, WIDTH, 3)
    alpha = np.full((HEIGHT, WIDTH, 1), 9, np.uint8)
    cases = {
        "grey": (grey, grey[None]),
        "grey_alpha": (np.concatenate([grey[..., None], alpha], 2), grey[None]),
        "colour_alpha": (np.concatenate([colour, alpha], 2), np.moveaxis(colour, 2, 0)),
    }
    for name, (pixels, expected) in cases.items():
        np.testing.assert_array_equal(
            read_image([write_png(tmp_path / f"{name}.png", pixels)]), expected, name
        )


@pytest.mark.parametrize("transparency", [None, bytes([0, 255, 0, 255])])
def test_a_palette_becomes_its_colours(tmp_path, transparency):
    indices = ramp(HEIGHT, WIDTH) % 4
    palette = np.array([[250, 0, 0], [0, 240, 0], [0, 0, 230], [10, 20, 30]], np.uint8)
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.tobytes())
    image.putpalette(palette.ravel().tolist())
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "palette.png", **options)
    np.testing.assert_array_equal(read_image([tmp_path / "palette.png"]), np.moveaxis(palette[indices], 2, 0))
    assert count_channels([tmp_path / "palette.png"]) == 3


def test_one_bit_images_are_black_and_white(tmp_path):
    pixels = ramp(HEIGHT, WIDTH) % 2
    Image.fromarray(pixels.astype(bool)).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image([tmp_path / "bits.png"]), pixels[None] * 255)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (200, 100)]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    image = read_image([tmp_path / "frames.gif"])
    assert image.shape[1:] == (HEIGHT, WIDTH)
    assert (image == 200).all()


def test_cmyk_becomes_colour(tmp_path):
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    image = read_image([tmp_path / "print.jpg"])
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image[0].min() > 200
    assert image[1:].max() < 60


def test_sixteen_bit_png_keeps_all_bits(tmp_path):
    grey = ramp(HEIGHT, WIDTH, dtype=np.uint16) * 1801
    colour = ramp(HEIGHT, WIDTH, 3, dtype=np.uint16) * 601
    alpha = np.concatenate([colour, np.full((HEIGHT, WIDTH, 1), 77, np.uint16)], 2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(colour))
    (tmp_path / "alpha.png").write_bytes(imagecodecs.png_encode(alpha))
    for name, expected in (
        ("grey", grey[None]),
        ("colour", np.moveaxis(colour, 2, 0)),
        ("alpha", np.moveaxis(colour, 2, 0)),
    ):
        image = read_image([tmp_path / f"{name}.png"])
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, expected, name)
        assert count_channels([tmp_path / f"{name}.png"]) == len(expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    upright = ramp(HEIGHT, WIDTH)
    # How the upright image must be stored so that the tag turns it upright (TIFF 6.0, page 36).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    stored = np.ascontiguousarray(stored)
    path = tmp_path / f"image.{suffix}"
    if suffix == "png":
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(path, exif=exif)
    else:
        tifffile.imwrite(path, stored, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_image([path])[0], upright)


def test_tiff_layouts(tmp_path):
    cases = {
        "plane": (ramp(HEIGHT, WIDTH, dtype=np.uint16), {}),
        "named": (ramp(6, HEIGHT, WIDTH), {"metadata": {"axes": "CYX"}}),
        "pages": (ramp(4, HEIGHT, WIDTH, dtype=np.uint16), {"photometric": "minisblack"}),
        "planar": (ramp(3, HEIGHT, WIDTH), {"photometric": "rgb", "planarconfig": "separate"}),
        "imagej": (ramp(2, 3, HEIGHT, WIDTH), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    }
    for name, (pixels, options) in cases.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, **options)
        expected = pixels.reshape(-1, HEIGHT, WIDTH)
        image = read_image([path])
        assert image.dtype == pixels.dtype, name
        np.testing.assert_array_equal(image, expected, name)
        assert count_channels([path]) == len(expected), name


def test_a_tiff_written_channels_last_is_recognised_by_its_shorter_axis(tmp_path):
    pixels = ramp(HEIGHT * 3, WIDTH * 3, 6, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "last.tif", pixels, photometric="minisblack")
    np.testing.assert_array_equal(read_image([tmp_path / "last.tif"]), np.moveaxis(pixels, 2, 0))


def test_tiff_alpha_palette_and_white_is_zero(tmp_path):
    colour = ramp(HEIGHT, WIDTH, 4)
    tifffile.imwrite(tmp_path / "alpha.tif", colour, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image([tmp_path / "alpha.tif"]), np.moveaxis(colour[..., :3], 2, 0))
    assert count_channels([tmp_path / "alpha.tif"]) == 3

    grey = ramp(HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "negative.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image([tmp_path / "negative.tif"])[0], 255 - grey)

    colormap = np.zeros((3, 256), np.uint16)
    colormap[1] = np.arange(256) * 257
    tifffile.imwrite(tmp_path / "palette.tif", grey, photometric="palette", colormap=colormap)
    palette = read_image([tmp_path / "palette.tif"])
    np.testing.assert_array_equal(palette[1], grey)
    assert palette[[0, 2]].max() == 0
    assert count_channels([tmp_path / "palette.tif"]) == 3


def test_arrays_in_either_layout(tmp_path):
    cases = {
        "plane": (ramp(HEIGHT, WIDTH), ramp(HEIGHT, WIDTH)[None]),
        "first": (ramp(4, HEIGHT, WIDTH), ramp(4, HEIGHT, WIDTH)),
        "last": (ramp(HEIGHT, WIDTH, 2), np.moveaxis(ramp(HEIGHT, WIDTH, 2), 2, 0)),
        "flat": (ramp(4, WIDTH, 3), np.moveaxis(ramp(4, WIDTH, 3), 2, 0)),
        "equal": (ramp(3, WIDTH, 3), ramp(3, WIDTH, 3)),
        "bits": (ramp(HEIGHT, WIDTH) % 2 == 1, (ramp(HEIGHT, WIDTH)[None] % 2) * np.uint8(255)),
    }
    for name, (array, expected) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(read_image([tmp_path / f"{name}.npy"]), expected, name)
        assert count_channels([tmp_path / f"{name}.npy"]) == len(expected)


def test_foreign_byte_order_becomes_native(tmp_path):
    pixels = ramp(HEIGHT, WIDTH, dtype=np.uint16) * 1001
    np.save(tmp_path / "big.npy", pixels.astype(">u2"))
    tifffile.imwrite(tmp_path / "big.tif", pixels, byteorder=">")
    for name in ("big.npy", "big.tif"):
        image = read_image([tmp_path / name])
        assert image.dtype == np.dtype("uint16")
        assert image.dtype.isnative
        np.testing.assert_array_equal(image[0], pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_in_the_unit_range(tmp_path, dtype):
    pixels = np.linspace(0, 1, HEIGHT * WIDTH, dtype=dtype).reshape(HEIGHT, WIDTH)
    np.save(tmp_path / "float.npy", pixels)
    image = read_image([tmp_path / "float.npy"])
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0], pixels)


def test_float_tiff(tmp_path):
    pixels = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "float.tif", pixels)
    np.testing.assert_array_equal(read_image([tmp_path / "float.tif"])[0], pixels)


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.array([[0.0, 3.5]]), r"from 0 to 3.5.*scale them to \[0, 1\]"),
        (np.array([[-2.0, 0.5]]), "from -2"),
        (np.array([[0.0, np.nan]]), "not finite"),
        (np.array([[0.0, np.inf]]), "not finite"),
        (np.array([[1, 2]], np.int64), "int64 values; write uint8"),
        (np.zeros((2, 2, 2, 2), np.uint8), "two or three dimensions"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path, array, cause):
    path = tmp_path / "odd.npy"
    np.save(path, array)
    with pytest.raises(ImageReadError, match=cause) as caught:
        read_image([path])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy", "gif"])
@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_corrupt_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    for function in (read_image, count_channels):
        with pytest.raises(ImageReadError, match=f"broken.{suffix}: cannot be read"):
            function([path])


def test_truncated_files_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    tifffile.imwrite(tmp_path / "whole.tif", rng.integers(0, 256, (64, 64), dtype=np.uint8))
    for suffix in ("png", "tif"):
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageReadError):
            read_image([cut])


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"gone.png: there is no such file"):
        read_image([tmp_path / "gone.png"])


def test_several_files_are_the_channels_in_order(tmp_path):
    paths = []
    for index in range(4):
        pixels = ramp(HEIGHT, WIDTH, dtype=np.uint16) + 100 * index
        tifffile.imwrite(tmp_path / f"{index}.tif", pixels.astype(np.uint16))
        paths.append(tmp_path / f"{index}.tif")
    image = read_image(paths)
    assert image.dtype == np.uint16
    assert (image[:, 0, 0] == [0, 100, 200, 300]).all()
    assert count_channels(paths) == 4


def test_files_of_one_image_may_differ_in_type_but_not_in_size(tmp_path):
    np.save(tmp_path / "eight.npy", np.full((HEIGHT, WIDTH), 255, np.uint8))
    np.save(tmp_path / "sixteen.npy", np.full((HEIGHT, WIDTH), 65535, np.uint16))
    image = read_image([tmp_path / "eight.npy", tmp_path / "sixteen.npy"])
    assert image.dtype == np.float32
    assert (image == 1).all()
    np.save(tmp_path / "wide.npy", np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(
        ImageReadError, match=r"wide.npy: is 5x8 pixels, .*eight.npy of the same image is 5x7"
    ):
        read_image([tmp_path / "eight.npy", tmp_path / "wide.npy"])


def test_unit_float_maps_the_whole_range():
    for dtype in (np.uint8, np.uint16):
        limits = np.array([[[0, np.iinfo(dtype).max]]], dtype)
        assert as_unit_float(limits).tolist() == [[[0.0, 1.0]]]


def test_the_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(ImageReadError("a.png", "is broken")))
    assert str(error) == "a.png: is broken"


def test_thirty_two_bit_integers_are_refused_unless_they_fit(tmp_path):
    header = b"P5 3 1 65535\n"
    (tmp_path / "deep.pgm").write_bytes(header + struct.pack(">3H", 0, 40000, 65535))
    assert read_image([tmp_path / "deep.pgm"]).tolist() == [[[0, 40000, 65535]]]


def test_a_procedural_name_is_drawn_and_not_read(tmp_path):
    path = tmp_path / image_name(seed=3, index=5, size=32)
    assert (read_image([path]) == draw_image(3, 5, 32)).all()
    assert count_channels([path]) == 3
