"""The papers' protocols: their words, what configs make of them, and what tables say of it."""

import re
from pathlib import Path

import pytest

from spinejax import config_files, schema, tasks
from spinejax.configs import common
from spinejax.errors import InputError
from spinejax.reports import protocols

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "saeed2023": ["chasppraunet", "mrunet", "cascade", "unet", "unet3d", "vnet"],
    "qadri2021": ["opconvnet", "opconvnet:net=vgg", "unet"],
}


def of_paper(paper, name):
    """Return a config with its paper's protocol."""
    protocol = common.PAPER_B if (paper, name) == ("qadri2021", "unet") else common.PAPER
    joint = "," if ":" in name else ":"
    return config_files.get_config(f"{name}{joint}protocol={protocol}")


def flat(text):
    """Return a text without marks and line breaks."""
    return " ".join(re.sub(r"\*\*|\$|\\", "", text).split())


@pytest.mark.parametrize("paper", protocols.PAPERS)
def test_the_words_are_the_papers_own(paper, real_data):
    marks = {"saeed2023": "CHASPPRAU", "qadri2021": "OP-convNet"}
    folder = real_data.parent / "papers"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    own = [flat(text) for text in texts if text.count(marks[paper]) > 5]
    if not own:
        pytest.skip("the texts of the papers are not here")
    for asked in protocols.PAPERS[paper].ASKED:
        assert any(flat(asked.words) in text for text in own), asked


@pytest.mark.parametrize("paper", protocols.PAPERS)
def test_each_field_exists_and_is_named_once(paper):
    module = protocols.PAPERS[paper]
    fields = {path for task in schema.TASKS for path in schema.fields(task)}
    paths = [asked.path for asked in module.ASKED]
    assert len(set(paths)) == len(paths)
    for path in (*paths, *(one.path for one in module.OPEN)):
        assert path in fields or path.startswith("model."), path


@pytest.mark.parametrize(("paper", "name"), [(p, n) for p in CONFIGS for n in CONFIGS[p]])
def test_a_config_follows_its_paper_where_its_task_can(paper, name):
    config = of_paper(paper, name)
    tasks.check(config)
    notes = protocols.notes(paper, {"run": schema.plain(config)})
    differing = {note.partition(" ")[0] for note in notes if "the paper asks for" in note}
    cubes = {
        "data.preprocess.mode",
        "augment.flip_axes",
    }  # whole cubes, whose names need up and down
    second = {f"vertebrae.{path}" for path in cubes}
    allowed = {schema.CUBES: cubes, schema.SLICES: second if "vertebrae" in config else set()}
    assert differing == allowed.get(config.task, set())


def test_what_a_config_does_otherwise_is_said_beside_the_papers_words():
    config = of_paper("saeed2023", "chasppraunet")
    config.data.preprocess.mode = "resample"
    config.train.epochs = 3.0
    notes = protocols.notes("saeed2023", {"run": schema.plain(config)})
    assert [note for note in notes if "the paper asks for" in note] == [
        "data.preprocess.mode is resample; the paper asks for resize: “The VerSe datasets were "
        "resized” (section 4.2)",
        "train.epochs is 3.0; the paper asks for 150.0: “trained with 150 epochs, using 0.001 as "
        "the initial learning rate” (section 4.2)",
    ]
    [left] = [note for note in notes if note.startswith("The paper does not say the plane of the")]
    assert "(data.plane is sagittal), " in left and "the batch size (train.batch_size is 8)" in left
    assert protocols.notes("saeed2023", {"run": {}}) == []


def test_a_sentence_that_is_not_about_all_runs_begins_with_their_names():
    runs = {}
    for name, batch_size in (("a", 4), ("b", 8), ("c", 8), ("not begun", None)):
        config = of_paper("saeed2023", "chasppraunet")
        if batch_size:
            config.train.batch_size = batch_size
            config.train.epochs = float(batch_size)
        runs[name] = schema.plain(config) if batch_size else {}
    notes = protocols.notes("saeed2023", runs)
    epochs = [note for note in notes if "train.epochs" in note]
    assert [note.partition(" is ")[0] for note in epochs] == [
        "a: train.epochs",
        "b, c: train.epochs",
    ]
    left = [note for note in notes if "The paper does not say" in note]
    assert left[0].startswith("The paper") and "(data.plane is sagittal)" in left[0]
    assert left[1:] == [
        "a: The paper does not say the batch size (train.batch_size is 4)",
        "b, c: The paper does not say the batch size (train.batch_size is 8)",
    ]


def test_the_projects_own_recipe_differs():
    own = schema.plain(config_files.get_config("chasppraunet"))
    notes = protocols.notes("saeed2023", {"run": own})
    assert any(note.startswith("data.preprocess.mode is resample") for note in notes)
    assert any(note.startswith("augment.intensity is true") for note in notes)
    assert any(note.startswith("model.dropout is 0.3") for note in notes)


@pytest.mark.parametrize("name", ["chasppraunet", "mrunet", "cascade", "unet", "vnet", "opconvnet"])
def test_an_unknown_protocol_is_refused_in_one_line(name):
    with pytest.raises(InputError, match=r"protocol='papers' is unknown; choose from .*paper"):
        config_files.get_config(f"{name}:protocol=papers")


def test_every_table_has_a_section_of_the_document():
    text = protocols.document()
    names = {name for names in protocols.SWEEPS.values() for name in names}
    assert names == {n for n in protocols.papers.tables()}
    for name in names:
        assert text.count(f"--sweep={name} ") == 1
    page = ROOT / "docs" / "papers.md"
    found = page.read_text(encoding="utf-8")
    assert found == text, "run `spinejax config --papers > docs/papers.md`"
