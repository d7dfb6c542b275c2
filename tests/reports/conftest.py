"""A headless browser for the pages."""

import shutil

import pytest

from tests.support import browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.PROGRAM is None:
        pytest.skip("no Chromium")
    home = tmp_path_factory.mktemp("chromium")
    with browser.Browser(home) as opened:
        yield opened
    shutil.rmtree(home, ignore_errors=True)
