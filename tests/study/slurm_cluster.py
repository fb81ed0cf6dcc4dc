"""A Slurm of one machine, started and ended by the tests: munge, the controller and one node or more, on loopback alone.

Each node has four CPUs and two GPUs that are only said to be there: their files are those of other devices.

As a script it starts one in FOLDER and stays until its stdin ends.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=1:00:00 PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=1:00:00 PriorityTier=10 PreemptMode=OFF
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=500 Gres=gpu:2"
_GRES = "NodeName={name} Name=gpu Count=2 File=/dev/null,/dev/zero"


def why_not() -> str:
    """Why no Slurm can be started here, or nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts only as root"


class SlurmCluster:
    """A controller and its nodes; jobs are sent in with `environ`."""

    def __init__(self, place: Path, n_nodes: int = 1):
        self.place = place
        (place / "state").mkdir(parents=True)
        place.chmod(0o755)
        key = place / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host, (port, *ports) = socket.gethostname().partition(".")[0], _free_ports(1 + n_nodes)
        names = [host] if n_nodes == 1 else [f"{host}-{i}" for i in range(n_nodes)]
        nodes = [_NODE.format(name=name, host=host, port=port) for name, port in zip(names, ports, strict=True)]
        values = {"host": host, "user": getpass.getuser(), "place": place, "port": port, "nodes": "\n".join(nodes)}
        (place / "slurm.conf").write_text(_CONF.format(**values))
        (place / "gres.conf").write_text("\n".join(_GRES.format(name=name) for name in names) + "\n")
        self.environ = os.environ | {"SLURM_CONF": str(place / "slurm.conf"), "PATH": _PATH}
        sockets = [f"--socket={place}/munge.socket", f"--key-file={key}", f"--pid-file={place}/munge.pid"]
        files = [f"--log-file={place}/munge.log", f"--seed-file={place}/munge.seed"]
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            # Root, in a folder of others: munge would rather not.
            self._start("munged", "--foreground", "--force", "--num-threads=2", *sockets, *files)
            _wait_until((place / "munge.socket").exists, "munge has a socket", self._words)
            self._start("slurmctld", "-D", "-i")
            for name in names:
                self._start("slurmd", "-D", "-N", name)
            is_idle = lambda: self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * n_nodes  # noqa: E731
            _wait_until(is_idle, "the nodes are idle", self._words)
        except BaseException:
            self.close()
            raise

    def run(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else f"{command[0]} failed: {done.stderr}"

    def close(self) -> None:
        if len(self.processes) > 1:
            self.run("scancel", "--user", getpass.getuser())
            _wait_until(lambda: not self.run("squeue", "-h").strip() or len(self.processes) < 3, "the queue is empty")
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []

    def _start(self, program: str, *words: str) -> None:
        found = shutil.which(program, path=_PATH)
        log = open(self.place / f"{program}.out", "ab")  # noqa: SIM115  (lives as long as the process)
        self.processes.append(
            subprocess.Popen([found, *words], env=self.environ, stdout=log, stderr=log, start_new_session=True)
        )
        log.close()

    def _words(self) -> str:
        return "\n".join(
            f"{p.name}: {p.read_text(errors='replace')[-1500:]}" for p in self.place.glob("*.[lo][ou][gt]")
        )


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_until(condition: Callable[[], bool], what: str, words: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}: {words()}"
        time.sleep(0.1)


if __name__ == "__main__":
    cluster = SlurmCluster(Path(sys.argv[1]))
    print(cluster.environ["SLURM_CONF"], flush=True)
    sys.stdin.read()
    cluster.close()
