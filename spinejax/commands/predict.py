"""`spinejax predict`: segment a CT, or every CT of a folder."""

import logging
from pathlib import Path

from absl import flags
from absl.flags import FlagValues

import spinejax
from spinejax import failures, machine, progress
from spinejax.commands import parsing
from spinejax.errors import InputError
from spinejax.files import check_output, made

logger = logging.getLogger("spinejax")

HELP = "segment a CT or a folder of CTs"
POSITIONAL = "input"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.path_flag(
        values,
        "input",
        "A CT (DICOM folder or zip, NIfTI, NRRD, MetaImage), or a folder of CTs; may be given "
        "without --input.",
        required=True,
        several=True,
        short="i",
    )
    parsing.path_flag(
        values,
        "output",
        "Folder for labels, records, pages and pictures.",
        required=True,
        short="o",
    )
    parsing.model_flags(values)
    parsing.calibration_flag(values)
    flags.DEFINE_integer(
        "series",
        None,
        "Number of the DICOM series; by default the CT series with the largest volume.",
        flag_values=values,
    )
    parsing.path_flag(
        values, "reference", "Label file or folder; the picture shows it beside the prediction."
    )
    flags.DEFINE_list(
        "formats",
        [],
        "Further formats of the labels: seg.nrrd, for 3D Slicer with names and colours; seg.dcm, "
        "for a PACS, with the patient's name, of a scan that is DICOM; stl, a mesh of each "
        "vertebra.",
        values,
    )
    flags.DEFINE_bool(
        "page",
        True,
        "Write a page with a viewer for each scan, and an index of the folder's pages.",
        flag_values=values,
    )
    parsing.overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Segment the scans; a bad file is named and the other files are segmented."""
    from spinejax import labels, plausible, predictor
    from spinejax.datasets import plain_folders
    from spinejax.io import dicom_seg, scanfile
    from spinejax.reports import viewer
    from spinejax.training import model_file, parallel
    from spinejax.volume import LabelVolume, Volume

    output: Path = values.output
    models = parsing.models(values) or model_file.PACKAGED[0]
    if scanfile.is_scan(output) and not output.is_dir():
        raise InputError(f"{output}: --output is a folder; its files get the names of their scans")
    predictor.check_formats("--formats", values.formats)
    unlisted: dict[str, str] = {}
    scans = _scans(values.input, unlisted)
    references = (
        {} if values.reference is None else plain_folders.reference_files(values.reference, scans)
    )
    parallel.use_cores()
    model = spinejax.load(
        models,
        vertebrae=values.vertebrae or None,
        outlines=values.outlines or None,
        checkpoint=values.checkpoint,
        flip=values.flip,
        calibration=values.calibration,
    )
    valid = scanfile.valid_labels(model.config.data.labels, strict=False)

    def check(name: str, path: Path) -> None:
        inputs = [*scans.values(), *references.values()]
        targets = predictor.outputs(
            output, name, named=model.named, page=values.page, formats=values.formats
        )
        if values.page and len(scans) > 1 and f"{name}.html".casefold() == viewer.INDEX:
            raise InputError(
                f"{path}: its page would be {viewer.INDEX}, the index of the folder; rename the "
                "scan, predict it alone, or add --nopage"
            )
        for target, kind in targets.items():
            check_output(target, kind, inputs=inputs, overwrite=values.overwrite)
        if dicom_seg.ENDING[1:] in values.formats:
            dicom_seg.check_source(path, values.series)

    reserved: dict[str, tuple[int, ...]] = {}

    def read(name: str, path: Path) -> tuple[Volume, LabelVolume | None]:
        if name not in references:
            return scanfile.read_volume(path, series=values.series), None
        return scanfile.read_pair(path, references[name], valid=valid, series=values.series)

    def segment(
        name: str, pair: tuple[Volume, LabelVolume | None]
    ) -> tuple[predictor.Segmentation, LabelVolume | None]:
        scan, truth = pair
        shape = "x".join(map(str, scan.shape))
        gib = model.estimate_bytes(scan) / 2**30
        print(f"{name}: {shape} voxels, about {gib:.1f} GiB beside the network", flush=True)
        if name == next(iter(allowed)):
            print(
                "the first scan takes longer, because the networks are compiled for it", flush=True
            )
        return model.segment(scan, name=name, progress=progress.bars), truth

    def save(name: str, pair: tuple[predictor.Segmentation, LabelVolume | None]) -> None:
        found, truth = pair
        if truth is not None:
            reserved[str(references[name])] = truth.reserved
        drawn = None if truth is None else truth.array
        paths = found.save(
            output,
            name,
            reference=drawn,
            page=values.page,
            formats=values.formats,
            overwrite=values.overwrite,
        )
        peak_gb = machine.peak_bytes() / 1e9
        lines = [f"{name}: {found.summary()} ({found.seconds:.1f} s, {peak_gb:.1f} GB)"]
        print("\n".join([*lines, *(f"  {path}" for path in paths)]), flush=True)
        little = found.volume_ml < plausible.LEAST_FOUND_ML
        if little and (why := plausible.why_nothing(found.scan)) is not None:
            logger.warning("%s: %s", allowed[name], why)

    table = output / predictor.TABLE
    if model.named:
        check_output(table, "table", overwrite=values.overwrite)
    _, refused = failures.each(scans, check)  # before hours of work
    if values.page and len(scans) + len(list(output.glob("*.html"))) > 1:
        check_output(output / viewer.INDEX, "index", overwrite=values.overwrite)
    with made(output, results=("*",)):
        allowed = {name: path for name, path in scans.items() if name not in refused}
        _, failed = failures.in_stages(allowed, read, segment, save, alone=len(scans) == 1)
        if values.page:
            index = viewer.write_index(output, overwrite=values.overwrite)
            if index is not None:
                print(f"index of the pages: {index}", flush=True)
        if model.named and len(failed) < len(allowed):
            print(predictor.write_table(output, overwrite=values.overwrite))
        note = labels.reserved_note(reserved)
        if note is not None:
            logger.warning("%s", note)
        failed = unlisted | refused | failed
        if failed:
            total = len(scans) + len(unlisted)
            what = "scans and folders" if unlisted else "scans"
            raise failures.summary(failed, total, "the rest are done", what)
    return 0


def _scans(sources: list[Path], unlisted: dict[str, str]) -> dict[str, Path]:
    """Return the CTs of files and folders by case id; `unlisted` gets what is left out."""
    from spinejax.datasets import plain_folders

    found: dict[str, list[Path]] = {}
    for source in sources:
        for name, path in plain_folders.scan_files(source, unlisted).items():
            found.setdefault(name, []).append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            problem = InputError(
                f"{name}: {paths[0]} and {paths[1]} would overwrite each other's results; predict "
                "them into two folders"
            )
            failures.note(name, problem, unlisted, alone=len(found) == 1)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}
