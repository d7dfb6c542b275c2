"""The cases of a run: which scans train, validate and test, and their preprocessed copies."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from spinejax import records
from spinejax.data import cache, preprocess
from spinejax.data.cache import CachedCase
from spinejax.datasets import copies, splits, verse
from spinejax.datasets.verse import Case
from spinejax.errors import InputError
from spinejax.files import expanded, write_json
from spinejax.metrics import aggregate
from spinejax.phantom import dataset
from spinejax.progress import Progress, silent
from spinejax.schema import STREAM
from spinejax.training import parallel
from spinejax.training.checkpoint import begun
from spinejax.training.run_folder import SPLITS, recorded_cases

logger = logging.getLogger("spinejax")


def dataset_root(config: ConfigDict, workdir: Path, *, progress: Progress = silent) -> Path:
    """Return the folder of the scans; phantoms are rendered into the workdir first.

    Raises:
        InputError: `data.root` is empty or is not a folder.
    """
    if config.data.source != "verse":
        return _phantoms(config, workdir, progress)
    if not config.data.root:
        raise InputError(
            "data.root is empty; give the folder of the scans with --config.data.root=DIR "
            "(or --config.data.source=phantom for synthetic ones)"
        )
    root = expanded(config.data.root)
    if not root.is_dir():
        raise InputError(
            f"data.root={config.data.root}: there is no such folder (looked for in {Path.cwd()}); "
            "correct the path. If the scans of a run were moved, repeat its `spinejax train` "
            "command with the new --config.data.root=DIR"
        )
    return root


def _phantoms(config: ConfigDict, workdir: Path, progress: Progress) -> Path:
    root, fields = workdir / "phantoms", config.data.phantom
    # phantoms.json is written last: without it the folder is incomplete.
    done, wanted = root / "phantoms.json", fields.to_dict()

    def render() -> None:
        if parallel.process_index() != 0 or records.read_or_empty(done) == wanted:
            return
        dataset.write_dataset(
            root,
            fields.cases,
            fields.seed,
            min_spacing_mm=fields.min_spacing_mm,
            max_spacing_mm=fields.max_spacing_mm,
            min_extent_mm=fields.min_extent_mm,
            max_extent_mm=fields.max_extent_mm,
            rates=fields.rates,
            label_cut=fields.label_cut,
            region=fields.region,
            progress=progress,
        )
        write_json(done, wanted, "phantom")

    parallel.together(render)
    return root


def find(
    config: ConfigDict, workdir: Path, *, progress: Progress = silent
) -> dict[str, list[Case]]:
    """Return the usable cases of each split.

    Raises:
        InputError: there is no folder of scans or no usable case, the split is impossible, or it
            differs from the split that the run in `workdir` began with.
    """
    streams = config.data.source == STREAM
    if streams and config.data.phantom.cases == 0:
        return {name: [] for name in SPLITS}
    real = config.data.source == "verse"

    def look() -> tuple[Path, list[Case], list[Case]]:
        root = dataset_root(config, workdir, progress=progress)
        return root, *_usable(config, root)

    root, index, usable = parallel.together(look)  # not every host may see the scans
    lacking = [c.id for c in index if not (c.image and c.labels) and c.duplicate_of is None]
    if lacking and parallel.process_index() == 0:
        logger.warning(
            "left out: %d of %d scans lack CT or mask (first: %s); `spinejax doctor --data=%s` "
            "names the files",
            len(lacking),
            len(lacking) + len(usable),
            lacking[0],
            root,
        )
    copied: list[list[str]] = []
    if real:
        copied = parallel.from_first(lambda: _copies(usable, _cache_folder(config, workdir)))
        usable = copies.as_one_patient(usable, copied)
    split = splits.split_cases(
        usable,
        kind=config.data.split,
        seed=config.data.split_seed,
        test_fraction=config.data.test_fraction,
        val_fraction=config.data.val_fraction,
        folds=config.data.folds,
        fold=config.data.fold,
        to_train={case.subject for case in usable if any(case.id in ids for ids in copied)},
    )
    if streams:
        # Training draws its own phantoms; the rendered ones validate and test.
        split = {"train": [], "val": split["train"] + split["val"], "test": split["test"]}
    if parallel.process_index() == 0:
        _say_copies(copied, split)
    if begun(workdir):
        _check_same_cases(workdir, split)
    return split


def check(config: ConfigDict) -> None:
    """Refuse a config whose folder of scans is missing or has none to train with.

    Only names of files are read. Phantoms need no folder.

    Raises:
        InputError: as `find`.
    """
    if config.data.source == "verse":
        _usable(config, dataset_root(config, Path()))


def _usable(config: ConfigDict, root: Path) -> tuple[list[Case], list[Case]]:
    """Return all cases of a folder, and those with CT and mask."""
    index = verse.index_dataset(root, exclude_gl=config.data.exclude_gl)
    real = config.data.source == "verse"
    edition = config.data.edition
    if edition and real:  # phantoms belong to no edition
        index = verse.of_edition(index, edition)
        if not index:
            raise InputError(
                f"{root} has no scan of data.edition={edition}; give its folder as data.root, or "
                'data.edition="" for all scans in the folder'
            )
    usable = verse.usable(index)
    if not real:
        # An earlier start that saved nothing may have rendered more phantoms.
        wanted = {dataset.case_name(number) for number in range(config.data.phantom.cases)}
        usable = [case for case in usable if case.id in wanted]
    if not usable:
        raise InputError(
            f"{root} has no scan with both CT and mask; `spinejax doctor --data={root}` names the "
            "missing files"
        )
    return index, usable


def _cache_folder(config: ConfigDict, workdir: Path) -> Path:
    return expanded(config.data.cache_dir or workdir / "cache")


def _copies(cases: Sequence[Case], cache_dir: Path) -> list[list[str]]:
    digests = cache.digests_in(cache_dir)
    found = copies.same_scans(cases, digests.of_voxels)
    digests.save()
    return found


_MOST_COPIES = 5  # that are named


def _say_copies(copied: Sequence[Sequence[str]], split: Mapping[str, Sequence[Case]]) -> None:
    for ids in copied[:_MOST_COPIES]:
        names = [name for name, cases in split.items() if ids[0] in {case.id for case in cases}]
        kept = f"all are in the split {names[0]}; " if len(names) == 1 else ""
        logger.warning(
            "%s are one scan under several names (equal voxels); %sremove all but one",
            aggregate.some(ids),
            kept,
        )
    if len(copied) > _MOST_COPIES:
        logger.warning(
            "%d more scans have several names; `spinejax doctor` names them",
            len(copied) - _MOST_COPIES,
        )


def _check_same_cases(workdir: Path, split: Mapping[str, Sequence[Case]]) -> None:
    recorded = recorded_cases(workdir)
    for name in SPLITS if any(recorded.values()) else ():
        before, now = set(recorded[name]), {case.id for case in split[name]}
        gone, come = sorted(before - now), sorted(now - before)
        if gone or come:
            changes = [f"{len(gone)} missing ({gone[0]})"] if gone else []
            changes += [f"{len(come)} new ({come[0]})"] if come else []
            raise InputError(
                f"{workdir / 'run.json'}: the {name} split now has other cases, "
                f"{' and '.join(changes)}; restore the dataset, or train in another --workdir"
            )


def prepare(
    config: ConfigDict,
    workdir: Path,
    *,
    cases: Mapping[str, Sequence[Case]] | None = None,
    wanted: Sequence[str] = SPLITS,
    progress: Progress = silent,
) -> dict[str, list[CachedCase]]:
    """Preprocess and cache the scans of the `wanted` splits, and return them.

    The processes of a run share the work; all of them must see the same cache folder.

    Args:
        config: the experiment.
        workdir: folder of the run.
        cases: the cases of each split; None finds them (`find`).
        wanted: names of splits.
        progress: shows how many scans are done.

    Raises:
        InputError: as `find`, or a scan or the cache folder cannot be used.
    """
    if cases is None:
        cases = find(config, workdir, progress=progress)
    settings = preprocess.from_config(config.data)
    folder = _cache_folder(config, workdir)
    chosen = {case.id: case for name in wanted for case in cases[name]}
    rank, count = parallel.process_index(), parallel.process_count()
    own = [chosen[case] for case in sorted(chosen)[rank::count]]  # not in the order of `wanted`
    shown = silent if rank else progress
    shares = parallel.from_all(
        lambda: cache.prepare(own, settings, folder, labels=config.data.labels, progress=shown)
    )
    found = [entry for share in shares for entry in share]
    if count > 1:
        found = parallel.together(lambda: cache.seen_from(folder, found))
    by_id = {entry.id: entry for entry in found}
    return {name: [by_id[case.id] for case in cases[name]] for name in wanted}
