"""A pytest plugin that runs the suite of etcd3gw against the server at TOOZ_TEST_HTTP_URL."""

import os
from urllib.parse import urlparse

import skips

SETUP = {}
NOT_YET = {}


def pytest_configure():
    # The suite skips itself where it finds no server, and takes its port from here.
    os.environ["TOOZ_TEST_ETCD_PORT"] = str(urlparse(os.environ["TOOZ_TEST_HTTP_URL"]).port)


def pytest_collection_modifyitems(items):
    skips.mark(items, SETUP, NOT_YET)
