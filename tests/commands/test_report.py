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


def test_bad_folders_are_refused(run, tmp_path, capsys):
    fails(capsys, ["report", f"--workdir={tmp_path / 'nowhere'}"], "nowhere")
    fails(capsys, ["report", f"--sweep={tmp_path}"], "is not the folder of a sweep")
    fails(capsys, ["report", f"--workdir={run}", f"--sweep={run}"], "give either")
    shutil.copytree(run, tmp_path / "w")
    fails(capsys, ["report", f"--sweep={run}", f"--before={tmp_path / 'w'}"], "--before")
