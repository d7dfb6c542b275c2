"""What the papers ask for, beside what a config does: notes of tables, and `docs/papers.md`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spinejax import config_files, schema
from spinejax.configs import common, qadri2021, saeed2023, sweeps
from spinejax.configs.common import Asked
from spinejax.reports import papers

PAPERS: dict[str, Any] = {"saeed2023": saeed2023, "qadri2021": qadri2021}
"""Key of `papers` -> the module with its protocol."""

SWEEPS = {
    "chasppraunet": tuple(f"saeed2023_table{n}" for n in (3, 5, 9, 11)),
    "mrunet": tuple(f"saeed2023_table{n}" for n in (4, 6, 7, 8, 10)),
    "opconvnet": ("qadri2021_table2", "qadri2021_table3"),
}
"""Config -> its sweeps that are published tables."""


def notes(paper: str, configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what differs from a paper's protocol, then what the paper leaves open, as sentences.

    Args:
        paper: key of PAPERS.
        configs: name of a run -> its nested fields; empty ones are left out. A sentence that is not
            about all runs begins with the names of its own.
    """
    differs: dict[str, list[str]] = {}
    chosen: dict[str, list[str]] = {}
    read = {name: config for name, config in configs.items() if config}
    for name, config in read.items():
        for prefix, fields in _stages(config):
            for asked, value in common.deviations(fields, PAPERS[paper].ASKED):
                text = (
                    f"{prefix}{asked.path} is {_text(value)}; the paper asks for "
                    f"{_text(asked.value)}: “{asked.words}” (section {asked.section})"
                )
                differs.setdefault(text, []).append(name)
            for one in PAPERS[paper].OPEN:
                if one.path in fields:
                    text = f"{one.what} ({prefix}{one.path} is {_text(fields[one.path])})"
                    chosen.setdefault(text, []).append(name)

    def of(names: Iterable[str]) -> str:
        return "" if set(names) == set(read) else f"{', '.join(names)}: "

    together: dict[tuple[str, ...], list[str]] = {}
    for text, names in chosen.items():
        together.setdefault(tuple(names), []).append(text)
    return [of(names) + text for text, names in differs.items()] + [
        f"{of(names)}The paper does not say {', '.join(texts)}" for names, texts in together.items()
    ]


def _stages(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the prefix and the flat fields of each network of a config.

    The papers count epochs. Where steps decide the length of a training, its epochs say so.
    """
    fields = schema.flatten(schema.complete(config))
    second = f"{schema.SECOND}."
    own = {k: v for k, v in fields.items() if not k.startswith(second)}
    others = {k.removeprefix(second): v for k, v in fields.items() if k.startswith(second)}
    for prefix, stage in (("", own), (second, others)):
        if stage:
            steps = stage.pop("train.steps", 0)
            epochs = {"train.epochs": f"not used (train.steps is {steps})"} if steps else {}
            yield prefix, stage | epochs


def _text(value: Any) -> str:
    return sweeps.text(value) if value != "" else "empty"


def document() -> str:
    """Return `docs/papers.md`: of each table, one unit's fields beside the paper's words."""
    parts = [_HEAD]
    for config, names in SWEEPS.items():
        parts += [_section(config, name) for name in names]
    return "\n".join(parts)


_HEAD = """\
# The papers' tables, field by field

`spinejax config --papers > docs/papers.md` writes this page. Each section is a table of a paper:
the command that prints its units, their number, and for one of them every field that the paper's
words are about. A field in **bold** differs from them. The lines without a section are what the
paper leaves open.
"""


def _section(config: str, name: str) -> str:
    units = sweeps.units(config_files.find_sweep(config, name)())
    table = papers.tables()[name]
    unit = units[0]
    fields = dict(unit.overrides)
    by_table = ", ".join(f"`{key}={_text(value)}`" for key, value in fields.items())
    found = config_files.get_config(str(fields.pop("config", config)), fields)
    asked, left = PAPERS[table.paper].ASKED, PAPERS[table.paper].OPEN
    rows = []
    for prefix, flat in _stages(schema.plain(found)):
        rows += [_row(prefix, one, flat) for one in asked if _is_about(one, flat)]
        rows += [
            (f"`{prefix}{one.path}`", _text(flat[one.path]), f"not said: {one.what}", "")
            for one in left
            if one.path in flat
        ]
    lines = ["| field | here | in the paper | section |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(
        [
            f"## {table.source.rpartition(', ')[0].partition(' et al.')[0]} et al., "
            f"Table {table.number}: {table.title}\n",
            f"`spinejax sweep --config={config} --sweep={name} --workdir=RUNS --dry_run` prints "
            f"{len(units)} units. The table sets in `{unit.name}`: {by_table}.\n",
            *lines,
            "",
        ]
    )


def _is_about(one: Asked, flat: Mapping[str, Any]) -> bool:
    return one.path in flat and flat["task"] in one.tasks


def _row(prefix: str, one: Asked, flat: Mapping[str, Any]) -> tuple[str, str, str, str]:
    here = flat[one.path]
    here = tuple(here) if isinstance(here, list) else here
    name = f"`{prefix}{one.path}`"
    words = f"“{one.words}”" if here == one.value else f"{_text(one.value)}: “{one.words}”"
    return (name if here == one.value else f"**{name}**", _text(here), words, one.section)
