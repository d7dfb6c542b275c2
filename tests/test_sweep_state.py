"""How far a unit is, from the files in its folder, and the tables made of it."""

import csv
import fcntl
import json
import re
import shutil
import subprocess

import pytest

from spinejax import cli, sweep_state
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.launch import plan, status
from spinejax.reports import papers, sweep_page, sweep_scores
from spinejax.sweep_state import State, Sweep, SweepUnit


def make(folder, *, step=None, steps=40, test=("a",), log="", outcome=None, **config):
    """A unit's folder as a run leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sweep_state.LOG).write_text(log)
    if step is not None:
        write_json(folder / "config.json", config)
        write_json(folder / "run.json", {"steps": steps, "cases": {"test": list(test)}})
        lines = [
            {"step": s, "kind": "train", "dice": 0.1, "seconds": 2.0 * s}
            for s in range(1, step + 1)
        ]
        lines.append({"step": step, "kind": "val", "dice": 0.5, "seconds": 2.0 * step})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + '{"step": 99, "ki')  # cut by a kill
    if outcome is not None:
        write_json(folder / sweep_state.OUTCOME, {"status": outcome})
    return folder


def finish(folder, dice=None, **more):
    (folder / "DONE").write_text("40 steps\n")
    if dice is not None:
        values = {"dice": dice, "iou": dice / (2 - dice), "precision": dice, "recall": dice, **more}
        binary = {key: {"mean": value} for key, value in values.items()}
        scores = {"cases": {"a": {}}, "summary": {"binary": binary}}
        write_json(folder / "evaluation" / "test" / "scores.json", scores)


def test_nothing_there_is_waiting_and_may_have_a_job(tmp_path):
    assert sweep_state.state(tmp_path / "a") == State("waiting")
    write_json(tmp_path / "a" / sweep_state.JOB, {"job": "12_3"})
    assert sweep_state.state(tmp_path / "a") == State("waiting", note="job 12_3")


def test_a_unit_whose_log_is_locked_runs_and_says_how_long_it_will(tmp_path):
    folder = make(tmp_path / "a", step=30)
    with (folder / sweep_state.LOG).open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        # 10 steps are left, 2 s each.
        assert sweep_state.state(folder) == State("running", 30, 40, 0.5, pytest.approx(20.0))
    assert sweep_state.state(folder) == State("stopped", 30, 40, 0.5)


def test_a_unit_that_is_trained_by_hand_runs(tmp_path):
    folder = make(tmp_path / "a", step=30, outcome=1)
    with (folder / sweep_state.LOCK).open("ab") as lock:
        assert sweep_state.take_lock(lock) and sweep_state.state(folder).kind == "running"
        with (folder / sweep_state.LOCK).open("ab") as other:
            assert not sweep_state.take_lock(other)
    assert sweep_state.state(folder).kind == "failed"


def test_the_last_validation_is_found_however_far_back(tmp_path):
    folder = make(tmp_path / "a", step=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
        for step in range(4, 2000):
            file.write(json.dumps({"step": step, "kind": "train", "seconds": 2.0 * step}) + "\n")
    assert sweep_state.state(folder) == State("stopped", 1999, 40, 0.5)


def test_the_lock_of_a_log_goes_with_the_last_process_that_holds_it(tmp_path):
    folder = make(tmp_path / "a", step=3)
    with (folder / sweep_state.LOG).open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "60"], stdout=log)
    assert sweep_state.state(folder).kind == "running"
    child.kill()
    child.wait()
    assert sweep_state.state(folder).kind == "stopped"


@pytest.mark.parametrize("status_", [0, 75, -15, -2])
def test_what_was_asked_to_stop_is_to_be_resumed(tmp_path, status_):
    assert sweep_state.state(make(tmp_path / "a", step=4, outcome=status_)).kind == "stopped"


def test_what_failed_says_why(tmp_path):
    log = "step 1\rstep 2\nspinejax train: error: the disk is full; free some\n"
    state = sweep_state.state(make(tmp_path / "a", log=log, outcome=1))
    assert (state.kind, state.note) == (
        "failed",
        "spinejax train: error: the disk is full; free some",
    )
    state = sweep_state.state(make(tmp_path / "b", log="half a batch", outcome=-9))
    assert state.note == "ended by SIGKILL, perhaps out of memory; last line: half a batch"
    assert (
        sweep_state.state(make(tmp_path / "c", outcome=3)).note == "exit status 3, nothing printed"
    )


def test_done_is_trained_and_scored_unless_there_is_nothing_to_score(tmp_path):
    folder = make(tmp_path / "a", step=40, outcome=0)
    finish(folder)
    assert sweep_state.state(folder).kind == "stopped"
    finish(folder, dice=0.0)
    assert sweep_state.state(folder) == State("done", 40, 40, 0.0)
    folder = make(tmp_path / "b", step=40, test=())
    finish(folder)
    assert sweep_state.state(folder) == State("done", 40, 40, 0.5)


def test_a_pipeline_is_done_when_both_networks_are(tmp_path):
    folder = make(tmp_path / "a", step=40, vertebrae={})
    finish(folder, dice=0.9)
    make(folder / "vertebrae", step=7, steps=9)
    assert sweep_state.state(folder) == State("stopped", 7, 9, 0.5, note="network 2 of 2")
    (folder / "vertebrae" / "DONE").write_text("9 steps\n")
    assert sweep_state.state(folder).kind == "done"


def test_the_table_counts_and_a_change_is_said_once():
    found = {"a": State("done", 40, 40, 0.91), "b": State("running", 3, 40, None, 3725.0, "n")}
    lines = status.table(found).splitlines()
    assert lines[-1] == "1 of 2 units done, 1 running"
    assert lines[1].split() == ["a", "done", "40/40", "0.9100"]
    assert lines[2].split() == ["b", "running", "3/40", "1:02:05", "n"]
    assert status.change("a", State("running"), found["a"]) == "a: done, step 40, Dice 0.9100"
    assert status.change("b", State("running", 2), found["b"]) is None


@pytest.fixture
def swept(tmp_path):
    """A sweep of a row of Table 3 with three seeds, one of Table 4, and one of no table."""
    row = {"table": "saeed2023_table3", "Dataset": "VerSe 2019", "Normalization": "0 to 1"}
    units = [SweepUnit(f"s{seed}", ("--config=c.py",), {"seed": seed}, row) for seed in range(3)]
    units.append(SweepUnit("m", ("--config=c.py",), {}, {**row, "table": "saeed2023_table4"}))
    units += [
        SweepUnit(f"own{seed}", ("--config=c.py",), {"model.norm": "batch", "seed": seed})
        for seed in range(2)
    ]
    sweep_state.write(tmp_path, Sweep("mixed", "c.py", tuple(units)))
    for seed, dice in ((0, 0.5), (1, 0.7)):
        finish(make(tmp_path / f"s{seed}", step=40), dice=dice)
    make(tmp_path / "s2", step=4, log="error: no scans\n", outcome=1)
    finish(make(tmp_path / "own0", step=40), dice=0.25, hd95_mm=3.0)
    return tmp_path


def test_a_cell_is_mean_and_sample_deviation_over_seeds_beside_the_published_one(swept):
    tables = {t.name: t for t in sweep_scores.tables(swept, sweep_state.read(swept))}
    assert list(tables) == ["saeed2023_table3", "saeed2023_table4", "mixed"]
    table = tables["saeed2023_table3"]
    published = papers.tables()["saeed2023_table3"]
    assert [(*line.place, *line.published) for line in table.lines] == list(published.rows)
    [line] = [line for line in table.lines if line.runs[1]]
    assert line.place == ("VerSe 2019", "0 to 1") and line.runs == (2, 3)
    mean = line.ours[0]
    assert mean.mean == pytest.approx(60) and mean.std == pytest.approx(200**0.5) and mean.n == 2
    assert sweep_page.shown(mean) == "60.00 ± 14.14"
    assert line.missing == "s2 failed at step 4 of 40: error: no scans"
    assert {line.missing for line in table.lines if not line.runs[1]} == {"no unit of the sweep"}
    [line] = tables["mixed"].lines
    assert line.place == ("batch",) and line.runs == (1, 2)
    assert dict(zip(tables["mixed"].columns, line.ours, strict=True))["hd95_mm"].mean == 3.0


def test_every_form_of_the_report_has_every_published_cell(swept, capsys):
    assert cli.main(["report", f"--sweep={swept}"]) == 0
    shown = capsys.readouterr().out
    written = (swept / "report.md").read_text()
    assert written in shown
    page, tex = (swept / "report.html").read_text(), (swept / "report.tex").read_text()
    rows = list(csv.DictReader((swept / "report.csv").open()))
    for name in ("saeed2023_table3", "saeed2023_table4"):
        table = papers.tables()[name]
        for row in table.rows:
            for cell in row[len(table.labels) :]:
                assert all(cell in text for text in (written, page, tex)), cell
        own = [r for r in rows if r["table"] == name]
        cells = [r["published"] for r in own]
        assert cells == [cell for row in table.rows for cell in row[len(table.labels) :]]
    found = [r for r in rows if r["n"] == "2"]
    assert [float(r["mean"]) for r in found][:1] == [pytest.approx(60)]
    assert "<script" not in page and "http" not in page
    assert "60.00 $\\pm$ 14.14" in tex and tex.count("\\begin{tabular}") == 3
    assert "VerSe 2019 & 0 to 1" in tex and "−" not in tex and "%)" not in tex.replace("\\%)", "")


def test_the_page_has_curves_of_the_units_that_recorded_something(swept):
    make(swept / "own0" / "vertebrae", step=9)
    text = page_of(swept)
    assert "Without a record so far: m; own1." in text
    # Three seeds of a row of Table 3 share a colour; the second network has curves of its own.
    titles = re.findall(r"<h3>(\S*)(, second network)?</h3>\s*<div class=\"wide\"", text)
    assert titles == [("saeed2023_table3", ""), ("mixed", ""), ("mixed", ", second network")]
    assert 'class="key u1">VerSe 2019 · 0 to 1</th>' in text and 'class="key u2"' not in text
    assert text.count('<path class="line u1"') == 3 + 1 + 1  # validated once: those are dots
    assert text.count('<circle class="u1 dot"') == 3 + 1 + 1
    # Published bars of eight rows and four columns, for two tables; ours of one row.
    assert text.count('<rect class="printed"') == 2 * 8 * 4
    assert text.count('<rect class="own"') == 4 and text.count('class="spread"') == 4


def page_of(workdir):
    found = sweep_state.read(workdir)
    return sweep_page.page(workdir, found, sweep_scores.tables(workdir, found))


def test_a_sweep_that_has_not_begun_or_is_damaged_has_a_page(swept):
    (swept / "s0" / "metrics.jsonl").unlink()
    (swept / "s0" / "metrics.jsonl").mkdir()
    assert "Without a record so far: s0; m; own1." in page_of(swept)
    for units in ((), (SweepUnit("a", (), {"model.norm": "batch"}),)):
        folder = swept / f"of_{len(units)}"
        folder.mkdir()
        sweep_state.write(folder, Sweep("none", "c.py", units))
        assert "No run has recorded anything yet." in page_of(folder)


def test_more_rows_than_colours_are_several_charts(tmp_path):
    units = tuple(SweepUnit(f"n{i}", (), {"seed": 0, "optim.x": i}) for i in range(14))
    sweep_state.write(tmp_path, Sweep("many", "c.py", units))
    for unit in units:
        make(tmp_path / unit.name, step=3)
    text = page_of(tmp_path)
    assert "<h3>Rows 1 to 12 of 14</h3>" in text and "<h3>Rows 13 to 14 of 14</h3>" in text
    assert 'class="key u12">x 11</th>' in text and 'class="key u2">x 13</th>' in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_reads_the_tables(swept, tmp_path):
    cli.main(["report", f"--sweep={swept}"])
    tex = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}%s\\end{document}"
    (tmp_path / "a.tex").write_text(tex % (swept / "report.tex").read_text())
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_doubtful_cells_of_all_tables_are_marked(swept):
    """44 of the 60 rows of Tables 3 to 10 have an IoU above Dice (counted here from the cells)."""
    above = marked = 0
    for name, table in papers.tables().items():
        units = (
            SweepUnit(
                "a", (), {}, {"table": name, **dict(zip(table.labels, table.rows[0], strict=False))}
            ),
        )
        [made] = sweep_scores.tables(swept / "none", Sweep("x", "c.py", units))
        for at, row in enumerate(table.rows):
            if not table.system:
                continue
            dice, iou = map(float, row[2:4])
            above += iou > dice
            numbers = made.marks.get((at, 1), ())
            marked += any("above DSC" in made.notes[n - 1] for n in numbers)
        assert made.reasons and made.source.endswith(f"Table {table.number}")
    assert above == marked == 44


def test_a_split_that_is_swept_is_no_repetition(swept):
    units = [
        SweepUnit(n, (), {"data.split": n, "optim.x": 1, "vertebrae.optim.x": 2}) for n in "ab"
    ]
    units.append(SweepUnit("c", (), {"data.split": "kfold", "data.folds": 2, "data.fold": 0}))
    made = sweep_scores.own_table(
        Sweep("x", "c.py", tuple(units)),
        sweep_scores.results(swept, Sweep("x", "c.py", tuple(units))),
    )
    assert made.labels == ("split", "optim.x", "vertebrae.optim.x")
    assert [line.place for line in made.lines] == [("a", "1", "2"), ("b", "1", "2"), ("", "", "")]


def test_wrong_cells_and_folders_are_refused(swept, capsys):
    found = sweep_state.read(swept)
    wrong = {"table": "saeed2023_table3", "Dataset": "VerSe 2021"}
    for cell, said in ((wrong, "no row"), ({"table": "saeed2023_table2"}, "not published")):
        units = (SweepUnit("a", (), {}, cell),)
        with pytest.raises(InputError, match=said):
            sweep_scores.tables(swept, Sweep("x", "c.py", units))
    assert cli.main(["report", f"--sweep={swept / 's0'}"]) == 1
    assert "not the folder of a sweep" in capsys.readouterr().err
    assert cli.main(["report"]) == 1
    assert "give either --workdir of a run or --sweep" in capsys.readouterr().err
    (swept / sweep_state.FILE).write_text('{"name": "a"}')
    assert cli.main(["report", f"--sweep={swept}"]) == 1
    assert "sweep.json is damaged" in capsys.readouterr().err
    assert found.name == "mixed"


def test_a_folder_goes_on_with_its_own_sweep_only(tmp_path):
    words = ("--config=configs/a.py", "--config.seed=1", "--config.data.root=/here")
    old = Sweep("s", "configs/a.py", (SweepUnit("u", words), SweepUnit("v", words)))

    def same(new, begun=("u",)):
        plan.check_same(old, new, begun, tmp_path)

    moved = ("--config=/elsewhere/configs/a.py", "--config.seed=1", "--config.data.root=/there")
    moved = (*moved, "--config.vertebrae.data.cache_dir=/there/cache")
    more = (SweepUnit("u", moved), SweepUnit("v", words), SweepUnit("w", words))
    same(Sweep("s", "/elsewhere/configs/a.py", more))
    same(Sweep("s", "configs/a.py", (SweepUnit("u", words),)))  # nobody had started v
    same(Sweep("other", "b.py", ()), begun=())
    bare = (SweepUnit("u", ("--config=a.py", *words[1:])),)
    same(Sweep("s", "a.py", bare))
    for new, said in (
        (Sweep("other", "configs/a.py", more), "belongs to sweep s"),
        (Sweep("s", "configs/b.py", more), "belongs to sweep s of configs/a.py"),
        (
            Sweep("s", "configs/a.py", (SweepUnit("v", words),)),
            "unit u, which was started, is no longer",
        ),
        (Sweep("s", "configs/a.py", (SweepUnit("u", words[:1]),)), "no --config.seed"),
    ):
        with pytest.raises(InputError, match=said):
            same(new)


def test_costs_stand_beside_the_scores_of_an_own_sweep(tmp_path):
    unit = SweepUnit("a", ("--config=c.py",), {"model.norm": "batch"})
    sweep_state.write(tmp_path, Sweep("mine", "c.py", (unit,)))
    folder = make(tmp_path / "a", step=40, vertebrae={})
    finish(folder, dice=0.9)
    finish(make(folder / "vertebrae", step=9))
    for place, more in (
        (folder, {"parameters": 1000, "seconds": 3600.0, "gflops": 0.5}),
        (folder / "vertebrae", {"parameters": 234, "seconds": 1800.0, "gflops": 9.0}),
    ):
        record = json.loads((place / "run.json").read_text())
        (place / "run.json").write_text(json.dumps({**record, **more}))
    times = {"hardware": "a computer", "seconds": {"x": 2.0, "y": 4.0, "z": None}}
    (folder / "evaluation" / "test" / "times.json").write_text(json.dumps(times))
    [table] = sweep_scores.tables(tmp_path, sweep_state.read(tmp_path))
    [line] = table.lines
    ours = {name: cell.mean for name, cell in zip(table.columns, line.ours, strict=True) if cell}
    assert ours["parameters"] == 1234 and ours["gflops"] == 0.5
    assert ours["vertebrae_gflops"] == 9.0
    assert ours["train_h"] == 1.5 and ours["predict_s"] == 3.0
    assert "| 1,234 |" in sweep_page.markdown([table])


def test_rows_are_compared_with_the_first_scan_by_scan(tmp_path):
    units = tuple(
        SweepUnit(f"{norm}{seed}", ("--config=c.py",), {"model.norm": norm, "seed": seed})
        for norm in ("batch", "group")
        for seed in range(2)
    )
    sweep_state.write(tmp_path, Sweep("mine", "c.py", units))
    gain = {"batch": 0.0, "group": 0.1}
    for unit in units:
        finish(folder := make(tmp_path / unit.name, step=40), dice=0.5)
        cases = {
            f"scan{n}": {"binary": {"dice": 0.1 * n + gain[unit.overrides["model.norm"]]}}
            for n in range(4)
        }
        file = folder / "evaluation" / "test" / "scores.json"
        scores = json.loads(file.read_text()) | {"cases": cases}
        file.unlink()
        file.write_text(json.dumps(scores))
    [table] = sweep_scores.tables(tmp_path, sweep_state.read(tmp_path))
    said = (
        "Dice of group against batch: +10.00 points, +10.00 to +10.00 (95 % interval, bootstrap "
        "over 4 scans)"
    )
    assert table.paired == (said,)
    assert said in sweep_page.markdown([table])
    assert said in sweep_page.page(tmp_path, sweep_state.read(tmp_path), [table])
