"""`spinejax search`: bad input leaves no folder. tests/training/test_search tests the search."""

import pytest

from tests.support.cli_runs import fails, snapshot


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config=unet",), "unet.py: has no sweep"),
        (("--config=opconvnet", "--sweep=randm_search"), "did you mean 'random_search'?"),
        (("--config=opconvnet", "--config.model.paddings=same,valid"), "model.paddings"),
        (("--config=opconvnet", "--config.model.norm=batch"), "no field model.norm"),
        (("--config=opconvnet", "--config.data.patches.size=8"), "too small"),
        (("--config=opconvnet", "--config.optim.momentum=2"), "optim.momentum"),
        (("--config=opconvnet", "--config.data.root=nowhere"), "nowhere"),
        (("--config=opconvnet", "--trials=0"), "trials"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_folder(words, said, tmp_path, capsys):
    fails(capsys, ["search", *words, f"--workdir={tmp_path / 'w'}"], said)
    assert not snapshot(tmp_path)
