"""A Slurm of one machine, started and ended by the tests: munge, the controller and one node, on loopback alone.

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
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
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
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=500
PartitionName=low Nodes={host} Default=YES MaxTime=1:00:00 PriorityTier=1
PartitionName=high Nodes={host} MaxTime=1:00:00 PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why no Slurm can be started here, or nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts only as root"


class SlurmCluster:
    """A controller and a node of four CPUs; jobs are sent in with `environ`."""

    def __init__(self, place: Path):
        self.place = place
        for name in ("state", "spool"):
            (place / name).mkdir(parents=True)
        place.chmod(0o755)
        key = place / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        values = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "place": place}
        (place / "slurm.conf").write_text(_CONF.format(**values, ports=_free_ports(2)))
        self.environ = os.environ | {"SLURM_CONF": str(place / "slurm.conf"), "PATH": _PATH}
        sockets = [f"--socket={place}/munge.socket", f"--key-file={key}", f"--pid-file={place}/munge.pid"]
        files = [f"--log-file={place}/munge.log", f"--seed-file={place}/munge.seed"]
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            # Root, in a folder of others: munge would rather not.
            self._start("munged", "--foreground", "--force", "--num-threads=2", *sockets, *files)
            _wait_until((place / "munge.socket").exists, "munge has a socket", self._words)
            self._start("slurmctld", "-D", "-i")
            self._start("slurmd", "-D", "-N", values["host"])
            _wait_until(lambda: self.run("sinfo", "-h", "-o", "%T").strip() == "idle", "the node is idle", self._words)
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
        log = open(self.place / f"{program}.out", "wb")  # noqa: SIM115  (lives as long as the process)
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
