"""Which tests of a client library's own suite are skipped, and why."""

import os

import pytest


def mark(items, setup, not_yet):
    """Skips what is named: `setup` on any server, `not_yet` on starling only.

    A name is that of a test, a class or a file. One that is not in the suite is an error, as is one which has
    become wrong by a newer release.
    """
    reasons = dict(setup)
    if os.environ["COMPAT_SERVER"] == "starling":
        reasons.update({name: f"not yet: {what}" for name, what in not_yet.items()})
    unused = set(setup) | set(not_yet)
    for item in items:
        names = {item.originalname, item.parent.name, item.path.name}
        unused -= names
        for name in names & reasons.keys():
            item.add_marker(pytest.mark.skip(reason=reasons[name]))
    if unused:
        raise pytest.UsageError(f"no tests in the suite: {', '.join(sorted(unused))}")
