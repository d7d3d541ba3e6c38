"""A pytest plugin that runs the suite of python-etcd3 against the server at PYTHON_ETCD_HTTP_URL."""

import functools
import os
from urllib.parse import urlparse

import etcd3
from hypothesis import HealthCheck, settings

import skips

# For tests on generated values: each value starts etcdctl, so there must not be many. Later releases of
# hypothesis than the suite was written for refuse its fixtures.
GENERATED = settings(
    max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

SETUP = {
    "test_user_pwd_auth": "patches a module that does not exist",
}
NOT_YET = {}


def pytest_configure():
    endpoint = urlparse(os.environ["PYTHON_ETCD_HTTP_URL"])
    # Parts of the suite are fixed to localhost:2379.
    etcd3.client = functools.partial(etcd3.client, host=endpoint.hostname, port=endpoint.port)


def pytest_collection_modifyitems(items):
    for test in {item.function for item in items if getattr(item.function, "is_hypothesis_test", False)}:
        GENERATED(test)
    skips.mark(items, SETUP, NOT_YET)
