"""A data set written anew in nnU-Net's layout or in that of VerSe.

nnU-Net's layout is that of version 2 (`documentation/dataset_format.md` of MIC-DKFZ/nnUNet): CTs in
`imagesTr` and `imagesTs`, masks on their grids with consecutive numbers, and `dataset.json`. The
numbers are those of `labels.to_contiguous`, the same in every data set. nnU-Net chooses its own
validation scans among those in `imagesTr`, and knows no centroids.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import spinejax
from spinejax import failures, files, labels, plausible
from spinejax.datasets import verse
from spinejax.datasets.verse import Case
from spinejax.errors import InputError, check_choice
from spinejax.io import nifti, nnunet, scanfile
from spinejax.label_schemes import BINARY
from spinejax.progress import Progress, silent

logger = logging.getLogger("spinejax")

LAYOUTS = ("nnunet", "verse")

SPINE = "vertebra"
"""The name of the one label of masks that do not tell vertebrae apart."""

_SUBSETS = {"train": "training", "val": "validation", "test": "test", None: ""}
_DESCRIPTION = "dataset_description.json"


def convert(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layout: str,
    *,
    scheme: str = "verse",
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """Write the scans of a data set in another layout.

    CTs keep their grid and their HU, as `scanfile.read_volume` reads them. Masks are put on the
    grid of their CT and have VerSe ids, or nnU-Net's numbers with their names. A scan that cannot
    be used is named, and the others are written. Of copies of one scan, one is written.

    Args:
        root: folder of a data set, see `verse.index_dataset`.
        output: the new folder.
        layout: one of `LAYOUTS`.
        scheme: the numbers in the masks, one of `label_schemes.NAMES`.
        overwrite: replace files that this program did not write, too.
        progress: shows how many scans are written.

    Returns:
        The CTs that were written, in the order of their cases.

    Raises:
        InputError: as for `verse.index_dataset`; no scan has both CT and mask; the two folders lie
            in one another; or a scan could not be converted, after the others were.
    """
    check_choice("--layout", layout, LAYOUTS)
    root, output = scanfile.named(files.expanded(root)), files.expanded(output)
    inner, outer = output.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise InputError(
            f"{output}: lies in the data set, or the data set in it; choose a folder outside of "
            f"{root}"
        )
    if layout == "verse" and scheme == BINARY:
        raise InputError(
            f"--labels={BINARY}: VerSe's layout needs the names of vertebrae; use --layout=nnunet"
        )
    failed: dict[str, str] = {}
    cases = {
        case.id: case
        for case in verse.index_dataset(root, failed=failed)
        if case.image is not None and case.duplicate_of is None
    }
    if not verse.usable(cases.values()):
        raise InputError(
            f"{root} has no CT with a mask; `spinejax doctor --data={root}` names what is missing"
        )
    targets = _targets(cases, output, layout)
    with files.made(output, results=("*",)), progress("writing scans", len(cases), "scan") as bar:
        if layout == "verse":
            files.write_json(
                output / _DESCRIPTION, _description(root), "description", overwrite=overwrite
            )

        def write(name: str, case: Case) -> Path:
            try:
                image, mask = targets[name]
                _write(case, image, mask, layout, scheme, overwrite=overwrite)
                return image
            finally:
                bar.advance()

        written, refused = failures.each(cases, write)
        if layout == "nnunet" and written:
            files.write_json(
                output / nnunet.NAME, _dataset_json(output, scheme), "dataset", overwrite=overwrite
            )
    failed |= refused
    if failed:
        raise failures.summary(failed, len(cases), "the rest are written")
    return list(written.values())


def _targets(cases: Mapping[str, Case], output: Path, layout: str) -> dict[str, tuple[Path, Path]]:
    """Return the paths of the CT and the mask of each case.

    Raises:
        InputError: two cases would have one path.
    """
    found: dict[str, tuple[Path, Path]] = {}
    owners: dict[str, str] = {}
    for name, case in cases.items():
        if layout == "nnunet":
            kind = "Ts" if case.subset == "test" or case.labels is None else "Tr"
            image = output / f"images{kind}" / f"{name}_0000.nii.gz"
            mask = output / f"labels{kind}" / f"{name}.nii.gz"
        else:
            # BIDS has letters and digits in a patient's name, and the index cuts it at "_".
            bids = name if name.startswith("sub-") else f"sub-{re.sub('[^A-Za-z0-9]', '', name)}"
            if bids == "sub-":
                raise InputError(
                    f"{case.image}: VerSe's layout needs a name of the letters A to Z and digits; "
                    "rename the scan"
                )
            folder, patient = output / _SUBSETS[case.subset], bids.partition("_")[0]
            image = folder / "rawdata" / patient / f"{bids}_ct.nii.gz"
            mask = folder / "derivatives" / patient / f"{bids}_seg-vert_msk.nii.gz"
        other = owners.setdefault(str(image).lower(), name)
        if other != name:
            raise InputError(f"{other} and {name} would both become {image}; rename one of them")
        found[name] = image, mask
    return found


def _write(
    case: Case, image: Path, mask: Path, layout: str, scheme: str, *, overwrite: bool
) -> None:
    """Write the CT and the mask of a case."""
    source = Path(case.image or "")
    marks = None
    if case.labels is None:
        scan = scanfile.read_volume(source)
    else:
        scan, marks = scanfile.read_pair(source, case.labels, valid=scanfile.valid_labels(scheme))
    for doubt in plausible.check(scan, str(source)):
        logger.warning("%s: %s", source, doubt)
    outputs = [image] if marks is None else [image, mask]
    for path, kind in zip(outputs, ("scan", "labels"), strict=False):
        files.check_output(path, kind, inputs=[source], overwrite=overwrite)
    if marks is not None:
        ids = marks.array
        if scheme == BINARY:
            ids = np.minimum(ids, 1)
        elif layout == "nnunet":
            ids = labels.to_contiguous(ids)
        names = labels.NAMES if layout == "verse" else None
        nifti.write_labels(mask, scan.to_native(ids), scan, names=names, overwrite=overwrite)
    nifti.write_volume(image, scan, scan.array.dtype.name, overwrite=overwrite)


def _dataset_json(output: Path, scheme: str) -> dict[str, object]:
    names = [SPINE] if scheme == BINARY else [labels.name(one) for one in labels.VERSE_IDS]
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: i for i, name in enumerate(names, start=1)},
        # nnU-Net compares it with the folder, which may hold scans of an earlier command.
        "numTraining": len(list(output.glob("imagesTr/*_0000.nii.gz"))),
        "file_ending": ".nii.gz",
        "name": output.absolute().name,
        "description": f"written by spinejax {spinejax.__version__}",
    }


def _description(root: Path) -> dict[str, object]:
    return {
        "Name": root.name,
        "BIDSVersion": "1.6.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "spinejax", "Version": spinejax.__version__}],
    }
