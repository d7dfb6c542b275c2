"""Filters and activations of a patch network in the page."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from spinejax.errors import InputError
from spinejax.reports import network_section
from spinejax.reports.page import write_report
from tests.reports.test_page import add_scores, read
from tests.reports.test_patches_section import patch_run

GENERATOR = np.random.default_rng(0)


def arrays(**changes):
    return {
        "conv_1": GENERATOR.normal(size=(3, 3, 1, 64)).astype(np.float32),
        "conv_2": GENERATOR.normal(size=(3, 3, 64, 128)).astype(np.float32),
        "conv_10": GENERATOR.normal(size=(3, 3, 4, 6)).astype(np.float32),
        "patch": GENERATOR.random((32, 32)).astype(np.float32),
        "maxpool_1": GENERATOR.random((7, 7, 64)).astype(np.float32),
        "maxpool_3": np.zeros((2, 2, 256), np.float32),
        "features": np.zeros(7, np.float32),
        "where": np.array("sub-verse014 86 120 204"),
        **changes,
    }


def network_run(tmp_path, **changes):
    run = patch_run(tmp_path / "run")
    add_scores(run, {"a": 0.9}, scans=False)
    with open(run / "evaluation/test/network.npz", "wb") as file:
        np.savez(file, **arrays(**changes))
    return run


def pictures(html):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'class="pixels"[^>]*src="data:image/png;base64,([^"]*)"', html)
    ]


def test_filters_and_activations_are_shown_in_the_order_of_the_layers(tmp_path):
    html, _, text = read(write_report(network_run(tmp_path)))
    titles = (
        "conv_1: 64 filters of 3 × 3 × 1 as they are",
        "conv_2: 128 filters of 3 × 3 × 64 mean over 64 input channels",
        "conv_10: 6 filters of 3 × 3 × 4 mean over 4 input channels",
        "The patch: 32 × 32",
        "maxpool_1: 64@7 × 7 0 of 64 channels silent",
        "maxpool_3: 256@2 × 2 256 of 256 channels silent",
    )
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "sub-verse014, slice 87, row 120, column 204" in text
    assert "features" not in text
    shapes = [picture.shape[:2] for picture in pictures(html)]
    assert shapes == [(31, 31), (31, 63), (7, 11), (32, 32), (63, 63), (47, 47)]
    assert len(html) < 120_000  # pictures of one pixel per number stay small


def test_pixels_are_enlarged_by_whole_factors(tmp_path):
    html, _, _ = read(write_report(network_run(tmp_path)))
    frames = [int(w) - 6 for w in re.findall(r'class="tiles" style="width:(\d+)px"', html)]
    for frame, picture in zip(frames, pictures(html), strict=True):
        assert frame % picture.shape[1] == 0 and 150 < frame <= 320


def test_tiles_lie_as_slices_are_hung(tmp_path):
    """An axial array is (x, y): its second axis runs down the picture."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[2, 0] = 1.0  # left of the patient, anterior: at the top right
    kernel[0, 2] = -1.0
    patch = np.zeros((8, 8), np.float32)
    patch[7, 0] = 1.0
    html, _, _ = read(write_report(network_run(tmp_path, conv_1=kernel, patch=patch)))
    filters, *_, shown, _, _ = pictures(html)
    assert filters[..., 0].tolist() == [[128, 128, 255], [128, 128, 128], [0, 128, 128]]
    assert shown[0, 7, 0] == 255 and shown[..., 0].sum() == 255


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (6, 3), (7, 3), (13, 4), (17, 5), (64, 8), (128, 16), (256, 16)]
)
def test_grids_are_full_where_they_can_be(count, columns):
    assert network_section.grid_columns(count) == columns
    tiles = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    picture = network_section.mosaic(tiles, 0.0, float(count * 6 - 1))
    assert (picture[..., 1] == 255).sum() == count * 6
    assert picture.shape[1] == columns * 4 - 1
    inside = picture[..., 0][picture[..., 1] == 255]
    assert inside.min() == 0 and inside.max() == 255


def test_one_scale_for_all_tiles_and_clipping():
    tiles = np.array([[[0.0, 1.0]], [[2.0, 9.0]]], np.float32)
    assert network_section.mosaic(tiles, 0.0, 2.0)[..., 0].tolist() == [[0, 128, 0, 255, 255]]
    assert (network_section.mosaic(np.zeros((1, 2, 2), np.float32), 0.0, 0.0)[..., 0] == 0).all()


def test_networks_of_any_size_fit(tmp_path):
    html, _, text = read(
        write_report(
            network_run(
                tmp_path,
                conv_1=GENERATOR.normal(size=(7, 7, 3, 2000)),
                stage_2=GENERATOR.normal(size=(16, 16, 512)),
                patch=GENERATOR.random((224, 224)),
            )
        )
    )
    assert "1024 of 2000 filters of 7 × 7 × 3 mean over 3 input channels" in text
    assert "stage_2: 512@16 × 16" in text
    assert html.count('class="tiles"') == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv_1": np.zeros((3, 3))}, "'conv_1' is not 4 axes of finite numbers"),
        ({"patch": np.zeros((3, 3, 3))}, "'patch' is not 2 axes"),
        ({"maxpool_1": np.full((2, 2, 2), np.nan)}, "'maxpool_1' is not 3 axes of finite"),
        ({"maxpool_1": np.full((2, 2, 2), 1e300)}, "'maxpool_1' is not 3 axes of finite"),
        ({"conv_1": np.full((3, 3, 1, 1), "a")}, "'conv_1' is not 4 axes"),
        ({"conv_1": np.zeros((3, 3, 0, 0))}, "'conv_1' is not 4 axes"),
        ({"x": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_what_is_no_network_is_a_sentence(tmp_path, changes, words):
    run = network_run(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        network_section.read_network(run / "evaluation/test/network.npz")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert words in read(write_report(run))[2]


def test_damaged_files_are_a_sentence(tmp_path):
    run = network_run(tmp_path, conv_2=np.zeros((3, 3, 1, 1), np.float32))
    path = run / "evaluation/test/network.npz"
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(1)
    for i in range(300):
        data = whole[: generator.integers(len(whole))] if i % 3 == 0 else whole.copy()
        if i % 3:
            # Headers and the directory at the end matter more than the numbers.
            near = generator.choice([0, len(data) - 1200], 4) + generator.integers(0, 1200, 4)
            data[near % len(data)] = generator.integers(0, 256, 4)
        path.write_bytes(data.tobytes())
        try:
            network_section.read_network(path)
        except InputError as error:
            assert "\n" not in str(error)
    path.write_bytes(b"")
    assert "network.npz: cannot be read" in read(write_report(run))[2]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (np.array(["c 1", "86", "2", "3"]), "c 1, slice 87, row 2, column 3"),
        (np.array("<script>"), "of vertebra (<script>)"),
        (np.array("a ² b c"), "a, slice ², row b, column c"),
        (np.array(5), "for one patch of vertebra:"),
        (np.array(""), "for one patch of vertebra:"),
    ],
)
def test_the_place_of_the_patch_is_words_of_any_kind(tmp_path, where, words):
    html, _, text = read(write_report(network_run(tmp_path, where=where)))
    assert words in text and "<script" not in html


def test_an_unknown_plane_is_said(tmp_path):
    run = network_run(tmp_path)
    config = (run / "config.json").read_text().replace('"axial"', '"oblique"')
    (run / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"damaged \(data.plane = 'oblique' is unknown"):
        write_report(run)


def test_a_file_with_nothing_to_show_says_so(tmp_path):
    run = network_run(tmp_path)
    with open(run / "evaluation/test/network.npz", "wb") as file:
        np.savez(file, where=np.array("a 1 2 3"))
    assert "neither filters nor activations" in read(write_report(run))[2]
