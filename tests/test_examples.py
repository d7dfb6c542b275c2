"""The notebooks in examples/ run, and hold no outputs."""

import json
from pathlib import Path

import matplotlib
import pytest

from spinejax.phantom import dataset

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, **parameters) -> dict:
    """Run the cells of a notebook; `parameters` replace those of its cell with that tag."""
    matplotlib.use("agg")
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102
            if "parameters" in cell["metadata"].get("tags", ()):
                assert set(parameters) <= set(names)
                names.update(parameters)
    matplotlib.pyplot.close("all")
    return names


def test_notebooks_hold_no_outputs():
    assert len(list(EXAMPLES.glob("*.ipynb"))) == 2
    for path in EXAMPLES.glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_a_ct_is_segmented_and_drawn(block_scans, block_pipeline, tmp_path, capsys):
    ct = block_scans / "images" / "case0.nii.gz"
    run("segment_a_ct.ipynb", CT=str(ct), MODEL=str(block_pipeline), OUT=str(tmp_path))
    assert capsys.readouterr().out.startswith("T12-L2 written\n T12 ")
    assert (tmp_path / "scan_quicklook.png").exists()


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_without_a_ct_a_phantom_is_segmented(block_pipeline, tmp_path, capsys, monkeypatch):
    # The notebook's phantom with an eighth of its voxels.
    coarse = {"min_spacing_mm": 4.0, "max_spacing_mm": 4.0}
    write = dataset.write_dataset
    monkeypatch.setattr(dataset, "write_dataset", lambda *a, **given: write(*a, **given | coarse))
    run("segment_a_ct.ipynb", MODEL=str(block_pipeline), OUT=str(tmp_path))
    assert "dice 0." in capsys.readouterr().out


@pytest.mark.slow  # compiles two training steps and the drawing of phantoms
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_variants_are_trained_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Training on phantoms that are written compiles faster than drawing them on the device.
    few = {"data.source": "phantom", "data.phantom.cases": 3, "data.test_fraction": 0.3}
    few |= {"data.phantom.min_spacing_mm": 4, "data.phantom.max_spacing_mm": 4}
    few |= {"data.phantom.min_extent_mm": 110, "data.phantom.max_extent_mm": 110}
    variants = {name: {"model.attention": name, **few} for name in ("none", "gate")}
    names = run("train_a_variant.ipynb", CONFIG="demo:debug", STEPS=2, VARIANTS=variants)
    assert set(names["scores"]) == set(variants)
    assert capsys.readouterr().out.count(" phantoms") == 2
