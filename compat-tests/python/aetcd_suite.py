"""A pytest plugin that runs the integration tests of aetcd against the server at TEST_ETCD_HTTP_URL."""

import functools
import os
from urllib.parse import urlparse

import aetcd

import skips

SETUP = {}
NOT_YET = {}


def pytest_configure():
    endpoint = urlparse(os.environ["TEST_ETCD_HTTP_URL"])
    # Parts of the suite are fixed to localhost:2379.
    aetcd.Client = functools.partial(aetcd.Client, host=endpoint.hostname, port=endpoint.port)


def pytest_collection_modifyitems(items):
    skips.mark(items, SETUP, NOT_YET)
