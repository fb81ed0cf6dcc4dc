"""One synthetic study and its page for all tests that only read it, and one browser."""

import os
from types import SimpleNamespace

import pytest
from browser import Browser, find_chromium
from reading import Page
from synthetic import analysed, make_study

from gatelab.report import write_report


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """A study with holes, its findings, and its page: `.folder .findings .shares .pairing .path .page`."""
    folder = make_study(tmp_path_factory.mktemp("report") / "quickstart")
    findings, shares, pairing = analysed(folder)
    path = write_report(folder, findings, shares=shares, pairing=pairing, note="Made for a test.")
    return SimpleNamespace(folder=folder, findings=findings, shares=shares, pairing=pairing, path=path, page=Page(path))


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; tests are skipped where there is none, unless in CI."""
    program = find_chromium()
    if program is None and os.environ.get("CI"):
        pytest.fail("no chromium was found, and this is a CI run: install the package chromium")
    if program is None:
        pytest.skip("no chromium was found: install the package chromium")
    browser = Browser(program)
    yield browser
    browser.close()
