"""The house: a module imports only from the rows above its own (docs/architecture.md, "Map")."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spinejax"

# The longest matching prefix decides. Modules of one row are siblings, and siblings do not import
# one another, except inside a package.
FLOORS = [
    {"errors"},
    {"files", "progress", "text_table", "machine", "failures", "numerics", "label_schemes"},
    {"geometry", "labels", "records", "schema", "compile_cache", "white_noise"},
    {"config_files", "sweep_state"},
    {"volume", "configs"},
    {"io", "plausible", "morphometry"},
    {"datasets"},
    {"data"},
    {"phantom", "augment", "models", "losses", "metrics", "overlay"},
    {"inference"},
    {"tasks"},
    {"training"},
    {"reports", "launch"},
    {"predictor"},
    {"scoring"},
    {"evaluation", "calibration"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
# name in the package -> floor
LEVEL = {name: level for level, row in enumerate(FLOORS) for name in row}
# Only these files know these libraries.
ONLY = {
    "nibabel": {"io/nifti.py"},
    "SimpleITK": {"io/itk.py"},
    "safetensors": {"training/model_file.py"},
    "orbax": {"training/checkpoint.py"},
    "grain": {f"data/{name}.py" for name in ("feeds", "slice_feed", "patch_feed", "cube_feed")},
    "tensorboardX": {"training/trackers.py"},
    "mlflow": {"training/trackers.py"},
    "wandb": {"training/trackers.py"},
    "pydicom": {f"io/{name}.py" for name in ("dicom_fields", "dicom_seg", "multi_frame")},
    "highdicom": {"io/dicom_seg.py"},
    "skimage": {"io/stl.py"},
}


def modules() -> list[Path]:
    links = ("configs", "launch")  # folders at the top of the repository; rglob follows no links
    paths = [*PACKAGE.rglob("*.py"), *(p for link in links for p in (PACKAGE / link).glob("*.py"))]
    return sorted(path for path in paths if path != PACKAGE / "__init__.py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_come_from_lower_floors(path: Path) -> None:
    mine = part(path)
    assert mine in LEVEL, f"{mine} has no floor; give it one in FLOORS and in docs/architecture.md"
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] != "spinejax" or pieces[1:] in ([], ["__version__"]):
            continue
        theirs = pieces[1]
        assert theirs == mine or LEVEL[theirs] < LEVEL[mine], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    libraries = {name.split(".")[0] for name in imports(path)}
    for library, rooms in ONLY.items():
        assert library not in libraries or relative in rooms, f"{relative} imports {library}"


def test_only_parallel_knows_pmap() -> None:
    def users(name: str) -> set[str]:
        return {
            str(path.relative_to(PACKAGE))
            for path in modules()
            if any(
                isinstance(node, ast.Attribute) and node.attr == name
                for node in ast.walk(ast.parse(path.read_text()))
            )
        }

    assert users("pmap") == {"training/parallel.py"}
    # Prediction divides its work over the devices of one process.
    assert users("shard_map") == {"training/parallel.py", "inference/devices.py"}


def test_data_and_configs_load_without_jax() -> None:
    # Workers that preprocess in parallel, and launchers, start in a fraction of a second.
    for path in [
        *(path for room in ("io", "datasets", "data") for path in (PACKAGE / room).glob("*.py")),
        *(ROOT / "configs").glob("*.py"),
    ]:
        assert not {n for n in imports(path) if n.split(".")[0] in ("jax", "flax")}, path


# What each room of phantom/ may import of it, beside itself.
PHANTOM = {
    "once": set(),
    "draws": {"once"},
    "person": {"once", "draws"},
    "body": {"once", "person"},
    "scanner": {"once", "draws", "person", "body"},
    "subjects": {"person", "scanner"},
    "samples": {"once", "draws", "person", "body", "scanner", "subjects"},
}
DRAWING = {
    "draws.py",
    "subjects.py",
    "samples.py",
    "dataset.py",
    "batches.py",
    "scanner/scan_plan.py",
}


def test_phantoms_draw_numbers_in_person_and_in_few_files() -> None:
    """body/ says what lies at a point, scanner/ what CT makes of it; `plan` alone draws there."""
    for path in sorted((PACKAGE / "phantom").rglob("*.py")):
        relative = path.relative_to(PACKAGE / "phantom")
        room = relative.parts[0].removesuffix(".py")
        source, names = path.read_text(), imports(path)
        theirs = {name.split(".")[2] for name in names if name.startswith("spinejax.phantom.")} - {
            room
        }
        if room in PHANTOM:
            assert theirs <= PHANTOM[room], f"{relative} imports {theirs - PHANTOM[room]}"
        if room != "person" and str(relative) not in DRAWING:
            draws = "jax.random" in source or "spinejax.phantom.draws.draw" in names
            assert not draws, f"{relative} draws random numbers"
        if room == "person":
            assert "jax.random" not in source, f"{relative}: draw by name, see draws.py"
