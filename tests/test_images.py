"""Images of every kind become the same upright 8-bit RGB, or a ValueError that says what is wrong."""

import base64
import http.server
import io
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, ViTImageProcessor

from modeling_mm import image_files, images
from modeling_mm.images import array_to_image, image_features, load_image, load_pixels, resized_pixels, to_rgb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_pixels() -> Image.Image:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), BLUE)
    return image


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(map(int, pixel)) for pixel in np.asarray(image).reshape(-1, 3)]


@pytest.fixture
def served_png():
    """A loopback server: `/ok` answers with an image, anything else with 404."""
    data = encode(two_pixels())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/ok" else 404)
            self.end_headers()
            self.wfile.write(data if self.path == "/ok" else b"")

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_source_gives_the_same_picture(tmp_path, served_png):
    data = encode(two_pixels())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    array = np.asarray(two_pixels())
    sources = {
        "Path": path,
        "str": str(path),
        "file URL": f"file://{path}",
        "http URL": f"{served_png}/ok",
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "data URL": f"data:image/png;base64,{text}",
        "base64": text,
        "datasets bytes": {"bytes": data, "path": "gone.png"},
        "datasets path": {"bytes": None, "path": str(path)},
        "PIL": two_pixels(),
        "PIL file": Image.open(path),
        "array": array,
        "array, channels first": np.moveaxis(array, -1, 0),
        "tensor": torch.tensor(array).permute(2, 0, 1),
        "float": array / 255,
        "float tensor in bfloat16": (torch.tensor(array) / 255).bfloat16(),
        "float to 255": array.astype(np.float32),
        "uint16": array.astype(np.uint16) * 257,
        "int64": array.astype(np.int64),
    }
    found = {name: pixels(load_image(source)) for name, source in sources.items()}
    assert [name for name, colors in found.items() if colors != [RED, BLUE]] == []


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    image = load_image(encode(two_pixels(), exif=exif.tobytes()))
    assert image.size == (1, 2)
    assert pixels(image) == [RED, BLUE]


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(load_image(encode(image))) == [GREEN, BLUE]


def test_palette_with_transparency_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(load_image(encode(image, transparency=0))) == [WHITE, BLUE]


@pytest.mark.parametrize(
    "mode, pixel, expected",
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), WHITE),
        ("L", 7, (7, 7, 7)),
        ("1", 1, WHITE),
        ("CMYK", (0, 255, 255, 0), RED),
        ("I;16", 65535, WHITE),
        ("I;16", 257 * 9, (9, 9, 9)),
        ("I", 65535, WHITE),
        ("I", 200, (200, 200, 200)),
        ("F", 1.0, WHITE),
        ("F", 100.0, (100, 100, 100)),
    ],
)
def test_modes(mode, pixel, expected):
    assert pixels(to_rgb(Image.new(mode, (1, 1), pixel))) == [expected]


def test_an_image_that_needs_no_change_is_not_copied_and_stays_as_it_is():
    image = Image.new("RGB", (4, 2), RED)
    assert load_image(image) is image
    features, _ = image_features(CLIPImageProcessor(), [[image]], {})
    assert features["pixel_values"].shape == (1, 1, 3, 224, 224) and pixels(image) == [RED] * 8
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    assert load_image(turned).size == (2, 4) and turned.size == (4, 2)


@pytest.mark.parametrize(
    "given",
    [
        lambda image: image,
        lambda image: image[:, ::-1].copy()[:, ::-1],  # strides below zero
        lambda image: image / 255,
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: image.astype(np.uint16) * 257,
    ],
)
def test_an_array_gives_the_pixels_of_its_image(given):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    looker = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=20)
    expected = looker(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    features, _ = image_features(looker, [[given(image)], [image[..., 0]], [Image.fromarray(image)]], {})
    assert torch.equal(features["pixel_values"][0], expected) and torch.equal(features["pixel_values"][2], expected)


def test_an_array_reaches_the_image_processor_without_a_copy():
    image, given = np.zeros((4, 6, 3), np.uint8), []

    def image_processor(images, **options):
        given.extend(images)
        return {"pixel_values": torch.zeros(len(images), 3, 4, 6)}

    image_features(image_processor, [[image]], {})
    assert given[0].shape == (3, 4, 6) and np.shares_memory(given[0], image)
    mirrored = load_pixels(image[:, ::-1], False, None)
    assert torch.from_numpy(mirrored).shape == (3, 4, 6)
    assert isinstance(load_pixels(image[..., 0], False, None), Image.Image)


def test_16_bit_file_is_scaled_and_not_clipped():
    grey = Image.fromarray(np.array([[0, 257, 257 * 128, 65535]], np.uint16))
    assert [pixel[0] for pixel in pixels(load_image(encode(grey)))] == [0, 1, 128, 255]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (1, 1), RED), Image.new("RGB", (1, 1), BLUE)]
    assert pixels(load_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))) == [RED]


@pytest.mark.parametrize(
    "shape, channels_first, size",
    [
        ((5, 4), None, (4, 5)),
        ((1, 1, 3), None, (1, 1)),
        ((3, 1, 1), None, (1, 1)),
        ((1, 9, 3), None, (9, 1)),
        ((3, 9, 1), None, (1, 9)),
        ((3, 7, 3), None, (7, 3)),
        ((3, 7, 3), True, (3, 7)),
        ((4, 7, 5), None, (5, 7)),
        ((5, 7, 1), None, (7, 5)),
    ],
)
def test_layout_of_arrays(shape, channels_first, size):
    assert array_to_image(np.zeros(shape, np.uint8), channels_first).size == size


def test_ambiguous_tensors_have_channels_first():
    assert array_to_image(torch.zeros(3, 7, 3, dtype=torch.uint8)).size == (3, 7)


def test_scaled_floats_are_left_alone():
    array = np.full((2, 4, 3), -1.5, np.float64)
    loaded = load_image(array, is_scaled=True)
    assert (loaded.shape, loaded.dtype, loaded.min(), loaded.max()) == ((3, 2, 4), np.float32, -1.5, -1.5)
    assert load_image(np.full((2, 4), 0.5), is_scaled=True).shape == (3, 2, 4)
    assert isinstance(load_image(np.zeros((2, 4), np.uint8), is_scaled=True), Image.Image)


@pytest.mark.parametrize(
    "source, message",
    [
        (b"this is no picture", "expected an image, got 18 bytes .* convert the file to PNG"),
        (b"", "expected an image, got 0 bytes"),
        ("gone.png", "'gone.png': expected an existing file, an http.s. or data: URL, or base64"),
        ({"bytes": None, "path": None}, "holds neither `bytes` nor a `path`"),
        (7, "expected a path, a URL, bytes.*; got an object of type int"),
        (None, "got an object of type NoneType"),
        (np.full((2, 2, 3), np.nan), r"expected pixel values within \[0, 1\] or \[0, 255\], got nan to nan"),
        (np.full((2, 2, 3), -0.5), "got -0.5 to -0.5; scale the array, or pass `do_rescale=False`"),
        (np.full((2, 2, 3), 300), "got 300 to 300"),
        (np.zeros((2, 2, 5)), r"expected 1, 3 or 4 channels .* got the shape \(2, 2, 5\)"),
        (np.zeros((1, 2, 2, 3)), "expected an array of 2 or 3 axes"),
        (np.zeros((0, 2, 3)), r"holds no pixels \(its shape is \(0, 2, 3\)\)"),
        (np.array([["a"]]), "expected pixels of an integer or float type"),
        (Image.new("RGB", (0, 3)), "holds no pixels"),
    ],
)
def test_what_is_no_picture(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for length in (len(data) // 2, len(data) // 4, 20):
        with pytest.raises(ValueError, match=r"damaged or cut short|expected an image"):
            load_image(data[:length])
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=str(path)):
        load_image(path)


def spoil(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("kind", ["PNG", "ICO", "ICNS"])
def test_checksums_of_png_are_checked(kind):
    """Pillow skips the one of the pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    load_image(data)
    pixels = data.index(b"IDAT")
    end = pixels + 4 + int.from_bytes(data[pixels - 4 : pixels], "big")
    for place in (end, end + 3, pixels + 20, end - 1):
        with pytest.raises(ValueError, match=r"checksum of the PNG chunk b'IDAT' at byte \d+ is wrong"):
            load_image(spoil(data, place))


def test_checksums_of_compressed_tiff_are_checked():
    """libtiff stops before them when it has enough pixels."""
    data = encode(Image.new("RGB", (64, 64), RED), "TIFF", compression="tiff_deflate")
    assert load_image(data).size == (64, 64)
    with Image.open(io.BytesIO(data)) as image:
        end = image.tag_v2[273][0] + image.tag_v2[279][0]
    with pytest.raises(ValueError, match="incorrect data check"):
        load_image(spoil(data, end - 1))


def test_png_of_nothing_but_chunks_and_tiff_of_more_than_its_pixels_are_refused(monkeypatch):
    empty = bytes(4) + b"tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    with pytest.raises(ValueError, match="more than 262144 chunks"):
        load_image(encode(two_pixels())[:33] + empty * 300_000)
    data = encode(Image.new("RGB", (2000, 2000), RED), "TIFF", compression="tiff_deflate")
    monkeypatch.setattr(image_files, "TIFF_PIXEL_BYTES", 0)
    monkeypatch.setattr(image_files, "UNPACKED_AT_ONCE", 1 << 16)
    with pytest.raises(ValueError, match=r"the TIFF strip at byte \d+ has no end"):
        load_image(data)


def test_png_of_several_frames_and_with_something_behind_is_whole():
    frames = [Image.new("RGB", (1, 1), RED), Image.new("RGB", (1, 1), BLUE)]
    data = encode(frames[0], save_all=True, append_images=frames[1:])
    assert pixels(load_image(data + b"something")) == [RED]
    with pytest.raises(ValueError, match="checksum of the PNG chunk b'fdAT'"):
        load_image(spoil(data, data.index(b"fdAT") + 9))


@pytest.mark.parametrize("kind", ["AVIF", "BLP"])
def test_every_error_of_pillow_for_a_damaged_file_is_a_value_error(kind):
    """AVIF raises RuntimeError, BLP NotImplementedError."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip("Pillow writes AVIF from 11.3 on")
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    data = encode(image if kind == "AVIF" else image.convert("P"), kind)
    refused = 0
    for place in range(0, min(len(data), 1200), 4):
        try:
            load_image(data[:place] + bytes(8) + data[place + 8 :])
        except ValueError:
            refused += 1
    assert refused > 4


def test_truncated_file_opened_by_the_caller(tmp_path):
    path = tmp_path / "half.png"
    path.write_bytes(encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:5000])
    with pytest.raises(ValueError, match="the image cannot be decoded"):
        load_image(Image.open(path))


def test_decompression_bomb(monkeypatch):
    data = encode(Image.new("RGB", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"more pixels than the limit .*1600 pixels.*MAX_IMAGE_PIXELS` \(now 100\)"):
        load_image(data)


def test_an_image_that_the_processor_would_enlarge_without_end_is_refused(monkeypatch):
    shortest = CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})
    assert resized_pixels(shortest, 40, 30) == pytest.approx(20 * 20 * 4 / 3)
    assert resized_pixels(shortest, 1, 500) == 20 * 20 * 500
    assert resized_pixels(ViTImageProcessor(), 1, 500) == resized_pixels(CLIPImageProcessor(do_resize=False), 1, 500)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 20 * 500)
    rows = [[Image.new("RGB", (30, 40))], [Image.new("RGB", (1, 500))]]
    assert image_features(shortest, rows, {})[0]["pixel_values"].shape == (2, 1, 3, 20, 20)
    rows[1].append(Image.new("RGB", (501, 1)))
    with pytest.raises(
        ValueError, match=r"Row 1, item 1 .* 501x1 would be resized to 200400 pixels.* to become 20; crop"
    ):
        image_features(shortest, rows, {})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_features(shortest, rows, {})[0]["pixel_values"].shape == (2, 2, 3, 20, 20)


def test_long_sources_are_shortened_in_messages():
    with pytest.raises(ValueError) as error:
        load_image("x" * 10_000)
    assert len(str(error.value)) < 400


def test_is_image():
    batch = np.zeros((2, 3, 4, 4))
    assert [images.is_image(value) for value in ("a.png", b"", {}, batch[0], batch, [batch[0]], ())] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


def test_postscript_is_refused():
    with pytest.raises(ValueError, match="expected an image"):
        load_image(encode(two_pixels(), "EPS"))


def test_floats_just_beyond_one_are_not_taken_for_bytes():
    """A resize overshoots a little; to read it as 0 to 255 would make the image black."""
    values = np.ones((2, 2, 3), dtype=np.float32)
    values[0, 0, 0] = 1.0001
    with pytest.raises(ValueError, match="clip the array to 1"):
        array_to_image(values)
