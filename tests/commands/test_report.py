"""`spinejax report`: the page of a run."""

import json
import shutil

from spinejax.cli import main
from tests.support.cli_runs import fails


def test_the_page_of_a_run_names_its_cases_and_needs_no_network(run, tmp_path, capsys):
    assert main(["evaluate", f"--workdir={run}"]) == 0
    capsys.readouterr()
    assert main(["report", "--workdir", str(run), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'page.html'}\n"
    page = (tmp_path / "page.html").read_text()
    (case,) = json.loads((run / "evaluation/test/scores.json").read_text())["cases"]
    assert case in page and "data:image" in page and "http://" not in page.replace("www.w3.org", "")


def test_files_of_somebody_else_and_of_the_run_are_not_replaced(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "w")
    run = tmp_path / "w"
    assert main(["evaluate", f"--workdir={run}"]) == 0  # so there are tables beside the page
    (run / "README.md").write_text("mine")
    before = (run / "config.json").read_bytes()
    arguments = ["report", f"--workdir={run}"]
    fails(capsys, [*arguments, f"--output={run / 'README.html'}"], "README.md", "did not write")
    fails(capsys, [*arguments, f"--output={run / 'config.json'}"], "give the name of an HTML file")
    (run / "link.html").symlink_to(run / "config.json")
    fails(capsys, [*arguments, f"--output={run / 'link.html'}", "--overwrite"], "is a link")
    assert not (run / "README.html").exists() and (run / "README.md").read_text() == "mine"
    assert (run / "config.json").read_bytes() == before
    assert main([*arguments, f"--output={run / 'README.html'}", "--overwrite"]) == 0
    assert (run / "README.md").read_text() != "mine"
    for _ in range(2):
        assert main(arguments) == 0


def test_bad_folders_are_refused(run, tmp_path, capsys):
    fails(capsys, ["report", f"--workdir={tmp_path / 'nowhere'}"], "nowhere")
    fails(capsys, ["report", f"--sweep={tmp_path}"], "is not the folder of a sweep")
    fails(capsys, ["report", f"--workdir={run}", f"--sweep={run}"], "give either")
    shutil.copytree(run, tmp_path / "w")
    fails(capsys, ["report", f"--sweep={run}", f"--before={tmp_path / 'w'}"], "--before")
