import io
import json

import numpy as np
import pytest
from PIL import Image

from focus_lab.analysis import overlays
from focus_lab.analysis.overlays import TILE_SIDE, draw_pictures
from focus_lab.analysis.samples import read_samples

APS = {"a": {0: 0.2}, "base": {0: 0.3}}


def test_every_cell_shows_the_same_image_beside_its_ground_truth(make_record, samples_folder):
    pictures = draw_pictures(make_record(APS, samples=samples_folder))
    ((image_id, tiles),) = pictures.rows
    assert (image_id, [tile.title for tile in tiles]) == ("7", ["ground truth", "a", "base"])
    assert "1 ring" in tiles[1].alt  # the second detection's score is too low
    assert "cross" not in tiles[1].alt
    # 12 of 24 tokens of the finest level and 3 of 6 of the next.
    assert tiles[1].caption == "50 % of tokens kept, 1 found"


def test_tiles_are_jpegs_that_are_not_too_large(make_record, samples_folder):
    pictures = draw_pictures(make_record(APS, samples=samples_folder))
    for tile in pictures.rows[0][1]:
        with Image.open(io.BytesIO(tile.jpeg)) as opened:
            assert opened.format == "JPEG"
            assert max(opened.size) <= TILE_SIDE
        assert len(tile.jpeg) < 60_000


def test_deeper_tokens_are_brighter_and_unrefined_ones_grey(samples_folder):
    image = read_samples(samples_folder).images["7"]
    pixels = np.zeros((64, 96, 3))
    pixels[..., 0] = 255.0
    veiled = overlays._veiled(pixels, image, 0)
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
    veiled = overlays._veiled(np.full((64, 96, 3), 200.0), image, 0)
    assert (veiled < 200).all()  # rows 0 and 1 of the tokens only, which nothing refined


@pytest.mark.parametrize(
    "broken", ["", "{}", '{"class_names": [], "num_encoder_layers": 2, "images": [{}]}', "[1]"]
)
def test_broken_samples_cost_the_pictures_only(make_record, samples_folder, broken):
    (samples_folder / "samples.json").write_text(broken)
    assert draw_pictures(make_record(APS, samples=samples_folder)).rows == ()


def test_a_missing_image_costs_its_row_only(make_record, samples_folder):
    (samples_folder / "7.jpg").write_bytes(b"no image")
    assert draw_pictures(make_record(APS, samples=samples_folder)).rows == ()
    (samples_folder / "7.jpg").unlink()
    assert draw_pictures(make_record(APS, samples=samples_folder)).rows == ()


def test_no_samples_no_pictures(make_record):
    assert draw_pictures(make_record(APS)).rows == ()
