"""Which process this is, by the variables of each launcher."""

from __future__ import annotations

from typing import Any

import pytest

from support.processes import variables
from tlx.errors import ProcessesError
from tlx.processes import ALONE, World, world_of
from tlx.processes.launcher import first_host, token_of

# What `srun --nodes 2 --ntasks 3` sets for its last process; the batch script around it knows the tasks too.
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {
    **{**JOB, "SLURM_PROCID": "2", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"},
    **{"SLURM_STEP_NODELIST": "gpu[08-09]", "SLURM_STEP_TASKS_PER_NODE": "2,1"},
}


def test_without_a_launcher_a_process_is_alone() -> None:
    assert world_of({}) == ALONE == world_of({"WORLD_SIZE": "1"}) == world_of({"RANK": "0", "SLURM_PROCID": "0"})


def test_a_script_of_sbatch_that_starts_tlx_without_srun_waits_for_nobody() -> None:
    assert world_of(JOB) == ALONE


def test_torchrun_and_the_own_launcher_name_rank_and_place() -> None:
    assert world_of(variables(1, 3, 29500)) == World(1, 3, 1, 3, "127.0.0.1", 29500)
    across = {**variables(5, 8, 29500), "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert world_of(across) == World(5, 8, 1, 4, "127.0.0.1", 29500)


def test_a_step_of_slurm_names_rank_place_and_the_first_node() -> None:
    world = world_of(STEP)
    assert (world.rank, world.size, world.local_rank, world.local_size, world.host) == (2, 3, 0, 1, "gpu08")
    first = world_of({**STEP, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert first.local_size == 2 and first.port == world.port and 16384 <= world.port < 32768
    assert world_of({**STEP, "SLURM_STEP_ID": "1"}).port != world.port
    assert world_of({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}).host == "10.0.0.1"


def test_torchrun_within_a_step_of_slurm_counts() -> None:
    assert world_of({**STEP, **variables(0, 2, 29500)}).size == 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("a[3,5-7],b", "a3"), ("gpu[003-005]", "gpu003"), ("r[1-2]-x,c", "r1-x"), ("a,b", "a")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": None}, "WORLD_SIZE is 3, and the variable RANK is not set"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number"),
        ({"RANK": "3"}, "this is process 3 of 3; expected a number below 3"),
        ({"MASTER_PORT": "65535"}, "MASTER_PORT is 65535"),
    ],
)
def test_variables_that_cannot_be_are_named(changes: dict[str, Any], said: str) -> None:
    environ = {**variables(1, 3, 29500), **changes}
    with pytest.raises(ProcessesError, match=said):
        world_of({name: value for name, value in environ.items() if value is not None})


def test_the_token_tells_runs_and_starts_apart() -> None:
    environ = variables(1, 3, 29500)
    assert token_of(environ) == token_of(variables(2, 3, 29500))
    others = [{"MASTER_PORT": "29600"}, {"TORCHELASTIC_RESTART_COUNT": "1"}, {"TLX_RUN_TOKEN": "x"}]
    assert len({token_of({**environ, **other}) for other in ({}, *others)}) == 4
