"""Whether a cluster of Ray can be joined, found out within seconds and before anything is planned: what answers at its address,
whether it takes our token, and which Ray and Python it runs.

Notable: `ray.init` finds all of this too, after up to half a minute, in its own words.
"""

import logging
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..config import ConfigError

_CONNECT_S = 3.0
# What a client of HTTP/2, which Ray speaks, begins with: the preface and empty settings. Its server answers with settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4


def check_ray(address: str | None) -> None:
    """Whether Ray is installed, and a cluster at `address` (None: Ray is embedded, nothing to reach) would have us.

    Raises:
        ConfigError: when not.
    """
    if find_spec("ray") is None:
        raise ConfigError(["--executor ray: Ray is not installed here; pip install 'gatelab[ray]'"])
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if address != "auto" and ("://" in address or not host or not port.isdigit()):
        raise ConfigError(
            [f"--ray-address {address}: expected host:port of a cluster's head, or auto on one of its machines"]
        )
    _check_head(address, head_of(address))


def head_of(address: str) -> str:
    """host:port of a cluster's head; of `auto` what RAY_ADDRESS names, or the cluster that this machine is of.

    Raises:
        ConfigError: `auto` where there is none.
    """
    if address != "auto":
        return address
    from ray._private import services

    try:
        with quiet():
            return services.canonicalize_bootstrap_address_or_die("auto")
    except (ConnectionError, ValueError):
        raise ConfigError(
            [
                "--ray-address auto: this machine is of no cluster of Ray; `ray start --head` makes it one's head, or name"
                " a head elsewhere as host:port"
            ]
        ) from None


def answers(address: str) -> bool:
    """Whether something takes connections there."""
    try:
        _connection(address).close()
    except (OSError, OverflowError):
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Ray and its libraries print as they please; what is wrong comes as an exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        logger.setLevel(level)
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
        for number in (*kept, nowhere):
            os.close(number)


def _check_head(address: str, head: str) -> None:
    name = f"--ray-address {address}" + (f" ({head})" if head != address else "")
    if not answers(head):
        raise ConfigError([f"{name}: nothing answers there; is the head up, and is this its port?"])
    stranger = (
        f"{name}: what answers there is no head of Ray; its port is 6379 unless `ray start --port` said otherwise"
    )
    # Ray's client would wait for a silent one for 40 s.
    if not _speaks_http2(head):
        raise ConfigError([stranger])
    import ray
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._private.utils import check_version_info

    try:
        with quiet():
            there = get_cluster_metadata(ray._raylet.GcsClient(address=head))
    except ray.exceptions.AuthenticationError:
        raise ConfigError(
            [
                f"{name}: the cluster does not take our token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or"
                " RAY_AUTH_TOKEN_PATH to the token that it was started with"
            ]
        ) from None
    except (ray.exceptions.RpcError, AttributeError, ValueError):  # or it does not say what every head does
        raise ConfigError([stranger]) from None
    try:
        with quiet():
            check_version_info(there, "here")
    except RuntimeError:
        runs, ours = (
            f"Ray {r} on Python {p}"
            for r, p in (
                (there["ray_version"], there["python_version"]),
                (ray.__version__, platform.python_version()),
            )
        )
        raise ConfigError(
            [f"{name}: the cluster runs {runs}, and here is {ours}; install the same versions here and there"]
        ) from None


def _connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S)


def _speaks_http2(address: str) -> bool:
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return True  # the client has the certificates
    try:
        with _connection(address) as there:
            there.sendall(_PREFACE)
            head, said = 9, b""
            while len(said) < head and (more := there.recv(head - len(said))):
                said += more
    except OSError:
        return False
    return len(said) == head and said[3] == _SETTINGS
