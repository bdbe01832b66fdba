"""A two-node Slurm cluster for SkyPilot on one machine, without a cloud and without a network.

Everything lives in private namespaces under one short folder: a login node (also the user's
desk, with this checkout and its .venv), two compute nodes behind a bridge, and an S3 server that
all of them reach. Compute nodes see neither this checkout nor each other's /tmp. Their wheels
come from a folder (`wheelhouse.py`). Tests use the fixture `lab` (`conftest.py`), a `Lab`
(`session.py`). By hand, as root:

    export PYTHONPATH=tests
    .venv/bin/python -m lab up
    .venv/bin/python -m lab run sky status
    .venv/bin/python -m lab node n1 hostname
    .venv/bin/python -m lab down

Debian packages: see `needs.py`, which also says why a machine cannot run it.
"""
