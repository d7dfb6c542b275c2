"""The pictures of phantoms beside real scans: one row is drawn without real scans."""

import dataclasses

import numpy as np
from PIL import Image

from tests.benchmarks import phantom_pictures


def test_a_row_without_a_real_scan_shows_both_phantoms(tmp_path, monkeypatch):
    rows = [
        dataclasses.replace(row, size_mm=(60, 20))
        for row in phantom_pictures.ROWS
        if row.words == "Soft kernel"
    ]
    monkeypatch.setattr(phantom_pictures, "ROWS", rows)
    phantom_pictures.main([f"--out={tmp_path}", "--rows", "1"])
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms_scan.png"]
    with Image.open(tmp_path / "phantoms_scan.png") as picture:
        assert picture.mode == "L" and picture.width == phantom_pictures.WIDTH
        pixels = np.asarray(picture).astype(int)
    body = pixels[2 * phantom_pictures.LINE + 2 * phantom_pictures.MARGIN : -40]
    blank, sharp, soft = np.array_split(body, 3, axis=1)
    roughness = [np.abs(np.diff(part, axis=1)).mean() for part in (sharp, soft)]
    assert blank.max() < 200 and sharp.max() > 200
    assert roughness[0] > 2 * roughness[1]
