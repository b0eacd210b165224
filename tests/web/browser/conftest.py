"""The built page and its address, for all tests of this folder."""

import pytest
from browsing import open_page
from helpers.servers.browser import build_page, serving_page


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_page(tmp_path_factory)


@pytest.fixture(scope="module")
def address(built):
    with serving_page(built[0]) as address:
        yield address


@pytest.fixture
def page(browser, address):
    context = browser.new_context()
    page = context.new_page()
    open_page(page, address)
    yield page
    context.close()
