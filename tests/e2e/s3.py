"""An object store for tests that speaks S3: moto's server, where it is installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator

import httpx2
import pytest

_START_SECONDS = 60


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server within the context, known to the environment; gives its address."""
    command = shutil.which("moto_server")
    if command is None:
        # It cannot be among the project's own packages: it wants older ones. CI installs it apart.
        pytest.skip("no moto_server on the PATH (pip install moto[server], in a place of its own)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [command, "--host", "127.0.0.1", "--port", str(port)], stdout=quiet, stderr=quiet
    )
    try:
        _wait(address)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", address)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                environment.setenv(name, "tests")
            # Whoever has no region asks the machine's own cloud, for seconds.
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
            yield address
    finally:
        process.terminate()
        process.wait(10)


def new_bucket(address: str) -> str:
    """URL of an empty bucket."""
    name = f"t{uuid.uuid4().hex}"
    httpx2.put(f"{address}/{name}").raise_for_status()
    return f"s3://{name}"


def _wait(address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.get(address)
            return
        if time.monotonic() > deadline:
            raise AssertionError("moto_server does not answer")
        # Another process, which says nothing when it is ready.
        time.sleep(0.1)
