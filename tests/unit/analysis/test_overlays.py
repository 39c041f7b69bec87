import io
import json

import numpy as np
import pytest
from PIL import Image

from focus_lab.analysis import overlays
from focus_lab.analysis.overlays import LAYER_SIDE, TILE_SIDE, abbreviated
from focus_lab.analysis.pictures import draw_pictures
from focus_lab.analysis.samples import read_samples
from focus_lab.analysis.summary import compare

APS = {"a": {0: 0.2}, "base": {0: 0.3}}


def test_every_cell_shows_the_same_image_beside_its_ground_truth(make_record, samples_folder):
    pictures = draw_pictures(compare(make_record(APS, samples=samples_folder)))
    ((image_id, tiles),) = pictures.rows
    assert (image_id, [tile.title for tile in tiles]) == ("7", ["ground truth", "a", "base"])
    assert "1 ring" in tiles[1].alt  # the second detection's score is too low
    assert "cross" not in tiles[1].alt
    # 12 of 24 tokens of the finest level and 3 of 6 of the next.
    assert tiles[1].caption == "50 % of tokens kept, 1 found"


def test_tiles_are_jpegs_that_are_not_too_large(make_record, samples_folder):
    pictures = draw_pictures(compare(make_record(APS, samples=samples_folder)))
    for tile in pictures.rows[0][1]:
        with Image.open(io.BytesIO(tile.jpeg)) as opened:
            assert opened.format == "JPEG"
            assert max(opened.size) <= TILE_SIDE
        assert len(tile.jpeg) < 60_000


def test_deeper_tokens_are_brighter_and_unrefined_ones_grey(samples_folder):
    image = read_samples(samples_folder).images["7"]
    pixels = np.zeros((64, 96, 3))
    pixels[..., 0] = 255.0
    veiled = overlays._veiled(pixels, image, [depth / 2 for depth in image.depth_by_level], 0)
    unrefined, shallow, deep = veiled[5, 5], veiled[40, 5], veiled[60, 5]
    assert deep.tolist() == [255, 0, 0]
    assert unrefined[0] < shallow[0] < deep[0]
    assert np.ptp(unrefined) < 30


def test_the_depth_follows_the_valid_part_of_a_padded_image(samples_folder):
    path = samples_folder / "samples.json"
    content = json.loads(path.read_text())
    # The model saw 32 x 48 of a canvas twice as large: the last token rows are padding.
    content["images"][0]["input_size"] = [32, 48]
    path.write_text(json.dumps(content))
    image = read_samples(samples_folder).images["7"]
    light = [depth / 2 for depth in image.depth_by_level]
    veiled = overlays._veiled(np.full((64, 96, 3), 200.0), image, light, 0)
    assert (veiled < 200).all()  # rows 0 and 1 of the tokens only, which nothing refined


@pytest.mark.parametrize(
    "broken", ["", "{}", '{"class_names": [], "num_encoder_layers": 2, "images": [{}]}', "[1]"]
)
def test_broken_samples_cost_the_pictures_only(make_record, samples_folder, broken):
    (samples_folder / "samples.json").write_text(broken)
    assert draw_pictures(compare(make_record(APS, samples=samples_folder))).rows == ()


def test_a_missing_image_costs_its_row_only(make_record, samples_folder):
    (samples_folder / "7.jpg").write_bytes(b"no image")
    assert draw_pictures(compare(make_record(APS, samples=samples_folder))).rows == ()
    (samples_folder / "7.jpg").unlink()
    assert draw_pictures(compare(make_record(APS, samples=samples_folder))).rows == ()


def test_no_samples_no_pictures(make_record):
    assert draw_pictures(compare(make_record(APS))).rows == ()


def test_each_layer_has_a_picture_with_the_tokens_that_it_refines(make_record, samples_folder):
    pictures = draw_pictures(compare(make_record(APS, samples=samples_folder)))
    (image,) = pictures.layers
    assert (image.image_id, [cell for cell, _ in image.rows]) == ("7", ["a", "base"])
    first, second = image.rows[0][1]
    # 15 of 30 tokens are refined at all, 8 of them by both layers.
    assert (first.title, first.caption) == ("layer 1", "50 % kept")
    assert (second.title, second.caption) == ("layer 2", "27 % kept")
    with Image.open(io.BytesIO(second.jpeg)) as opened:
        assert max(opened.size) <= LAYER_SIDE
        pixels = np.asarray(opened, dtype=float)
    with Image.open(io.BytesIO(first.jpeg)) as opened:
        brighter = np.asarray(opened, dtype=float).std(axis=2)
    # The third of four rows of tokens, in the upper half of the tile: refined by the first layer
    # only, so it is grey in the second.
    row = round(pixels.shape[0] * 2.5 / 4 / 2)
    right = slice(pixels.shape[1] // 2, None)  # the detection lies on the left
    assert brighter[row, right].mean() > 1.5 * pixels.std(axis=2)[row, right].mean()


@pytest.mark.parametrize(
    ("kept", "captions"),
    [
        ([8, 15], ["27 % kept", "50 % kept"]),
        ([15, 8], ["50 % kept", "27 % kept"]),
        (None, ["50 % kept", "27 % kept"]),  # a file from before, whose cascade is taken to fall
    ],
)
def test_a_rising_cascade_is_drawn_in_the_order_of_its_layers(
    make_record, samples_folder, kept, captions
):
    _with_counts(samples_folder, kept)
    (image,) = draw_pictures(compare(make_record(APS, samples=samples_folder))).layers
    tiles = image.rows[0][1]
    assert [tile.caption for tile in tiles] == captions
    for caption, tile in zip(captions, tiles, strict=True):
        assert f"{caption.removesuffix(' kept')} of the tokens refined" in tile.alt


def test_layers_that_take_equally_many_refine_the_same_tokens(make_record, samples_folder):
    path = samples_folder / "samples.json"
    content = json.loads(path.read_text())
    (entry,) = content["images"]
    entry["kept_depth"] = [2 * min(depth, 1) for depth in entry["kept_depth"]]
    path.write_text(json.dumps(content))
    _with_counts(samples_folder, [15, 15])
    (image,) = draw_pictures(compare(make_record(APS, samples=samples_folder))).layers
    first, second = image.rows[0][1]
    assert first.caption == second.caption == "50 % kept"
    assert first.jpeg == second.jpeg


def test_counts_of_other_layers_than_there_are_cost_the_pictures_only(make_record, samples_folder):
    _with_counts(samples_folder, [15])
    assert draw_pictures(compare(make_record(APS, samples=samples_folder))).rows == ()


def _with_counts(folder, kept):
    path = folder / "samples.json"
    content = json.loads(path.read_text())
    if kept is not None:
        content["images"][0]["kept_by_layer"] = kept
    path.write_text(json.dumps(content))


def test_classes_are_told_apart_by_letters_as_well_as_by_colour(make_record, samples_folder):
    names = ["shark", "starfish", "stingray", "fish", "star"]
    assert [abbreviated(names, n) for n in range(5)] == ["sh", "starf", "sti", "f", "star"]
    assert abbreviated(["a", "a"], 0) == "a"
    pictures = draw_pictures(compare(make_record(APS, samples=samples_folder)))
    assert [entry[:2] for entry in pictures.legend] == [("ring", "r"), ("cross", "c")]
