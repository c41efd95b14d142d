"""A Slurm of one node, with its own folder and ports: the daemons are those of Debian's slurm-wlm and munge."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol")
CPUS = 2
CONFIG = """\
ClusterName=tlx
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=2
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=0
KillWait=20
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=one Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes=one MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why there can be no Slurm here; "" where there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    lacking = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if lacking:
        return f"there is no {', '.join(lacking)}: install slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "slurmd starts the jobs of others as root alone"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [entry.getsockname()[1] for entry in sockets]


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Start the daemons, and give the configuration that SLURM_CONF is to name; they end with the block."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key, config, host = folder / "munge.key", folder / "slurm.conf", socket.gethostname().partition(".")[0]
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    config.write_text(CONFIG.format(folder=folder, host=host, user=getpass.getuser(), ports=free_ports(2), cpus=CPUS))
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "SLURM_CONF": str(config)}
    munge = [f"--{name}={folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-N", "one", "-f", str(config)],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            ready = (folder / "munge" / "socket").exists if command[0] == "munged" else lambda: True
            _wait(ready, folder)
        state = ["sinfo", "--noheader", "--partition=main", "--format=%T"]
        _wait(lambda: subprocess.run(state, capture_output=True, env=environment).stdout == b"idle\n", folder)
        yield config
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True, env=environment, timeout=30)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait(ready: object, folder: Path) -> None:
    assert callable(ready)
    deadline = time.monotonic() + 60
    while not ready():
        logs = {path.name: path.read_text()[-1000:] for path in folder.glob("*.log")}
        assert time.monotonic() < deadline, f"Slurm does not start: {logs}"
        time.sleep(0.1)
