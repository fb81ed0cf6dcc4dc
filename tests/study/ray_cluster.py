"""A cluster of Ray on one machine, in a process of its own: a head without slots, and machines that can be lost.

As a script it takes the machines' number and resources, says where the head and the raylets are, and obeys a line each:
`lose N`, `lose head`; the end of its stdin ends it all.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_CHILD_SUBREAPER = 36  # of prctl(2): what lost its parent becomes ours


class Cluster:
    """Machines have one CPU each unless `resources` say otherwise."""

    def __init__(self, n_machines: int, **resources: float):
        words = [sys.executable, __file__, str(n_machines), json.dumps({"num_cpus": 1} | resources)]
        # Its own session: what ends a test's driver does not end it.
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        facts = self._answer()
        self.address, self.raylets = facts["address"], facts["raylets"]

    def lose(self, machine: int | str) -> None:
        """Kill all that Ray has on one of the machines, or on the `head`."""
        self._process.stdin.write(f"lose {machine}\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, object]:
        for line in self._process.stdout:
            if line.startswith("{"):  # Ray prints too
                return json.loads(line)
        raise RuntimeError("the cluster did not start")


def descendants() -> list[int]:
    """All that came of this process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(os.getpid(), []))
    for pid in found:
        found += children.get(pid, [])
    return found


def end_what_is_left() -> None:
    """Such as the agents of a machine that was killed, which look for its raylet for a while."""
    while left := descendants():
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


def main() -> None:
    from ray.cluster_utils import Cluster as Simulated

    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    cluster = Simulated(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    machines = [cluster.add_node(**json.loads(sys.argv[2])) for _ in range(int(sys.argv[1]))]
    raylets = [machine.all_processes["raylet"][0].process.pid for machine in machines]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    for line in sys.stdin:
        name = line.split()[1]
        if name == "head":
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        else:
            machines[int(name)].kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        print("{}", flush=True)
    for node in [*machines, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    end_what_is_left()


if __name__ == "__main__":
    sys.path = [p for p in sys.path if p != str(Path(__file__).parent)]
    main()
