"""The checker is checked on the NumPy backend: it finds each planted fault and blames no clean pair."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tlx.conformance.loopback import Loopback
from tlx.proof import selftest as module
from tlx.proof.faults import Fault, faults
from tlx.proof.result import Verdict
from tlx.proof.selftest import Finding, selftest, show

pytestmark = [pytest.mark.needs("loopback"), pytest.mark.thorough]  # faults in ports are planted by tests/parity too


@pytest.fixture(scope="module")
def findings() -> dict[str, list[Finding]]:
    by_fault: dict[str, list[Finding]] = {}
    for finding in selftest(Loopback()):
        by_fault.setdefault(finding.name, []).append(finding)
    return by_fault


def test_no_clean_pair_is_blamed(findings: dict[str, list[Finding]]) -> None:
    assert len(findings[""]) == 2 and all(finding.report.verdict == Verdict.EQUAL for finding in findings[""])


@pytest.mark.parametrize("fault", [fault.name for fault in faults(Loopback())])
def test_each_planted_fault_is_found(fault: str, findings: dict[str, list[Finding]]) -> None:
    (finding,) = findings[fault]
    assert finding.report.verdict == Verdict.DIFFERENT and finding.report.first


# The stage that must convict, and what the verdict must say: a fault found by luck elsewhere is not understood.
MESSAGES = {
    "a weight is missing": ("P1", "fc1.weight (missing in the candidate)"),
    "one wrong label": ("P2", "the label of sample"),
    "two batches are swapped": ("P2", "the samples of the reference's train/0000/0001"),
    "a sample is dropped": ("P2", "without sample"),
    "the random stream of another seed": ("P2", "another random stream"),
    "channels are swapped (BGR)": ("P3", "what enters the model differs"),
    "label smoothing is forgotten": ("P4", "the loss function differs"),
    "the loss is summed, not averaged": ("P4", "Outputs and loss are equal and gradients are not"),
    "BatchNorm keeps the biased variance": ("P4", "running statistics are not (buffer bn1.running_var"),
    "a frozen BatchNorm adapts": ("P6", "bn1."),
    "unfreezing comes one step late": ("P6", "step 10, where 4 arrays unfreeze"),
    "the rate is inside the momentum": ("P5", "optimizer slot momentum"),
    "gradients are not clipped": ("P5", "gradients are not clipped at all"),
    "gradients are clipped by value": ("P5", "gradients are clipped by value"),
    "gradients are clipped by group": ("P5", "clipped by the norm of each group"),
    "each gradient is clipped by itself": ("P5", "clipped by the norm of each array"),
    "micro-batches are added, not weighed": ("P6", "the weights of the 2 micro-batches differ"),
    "gradients are kept from the step before": ("P6", "step 1 differs: gradient"),
    "warm-up comes one step late": ("P6", "is 0.5 times the reference's: its rate differs"),
    "the moving average has another decay": ("P6", "the moving average differs. So does each other of 8 steps"),
    "the moving average begins at zero": ("P6", "the moving average differs. Equal: steps 1, 2"),
    "the moving average is a step late": ("P6", "the moving average differs. So does each other of 8 steps"),
    "Adam counts one step for all parameters": ("P5", "optimizer slot step"),
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_the_fault_is_named(fault: str, findings: dict[str, list[Finding]]) -> None:
    (finding,) = findings[fault]
    stage, words = MESSAGES[fault]
    assert finding.stage == stage and words in finding.report.first


def test_the_difference_is_also_there_as_facts(findings: dict[str, list[Finding]]) -> None:
    (finding,) = findings["a weight is missing"]
    values = json.loads(json.dumps(finding.report.to_dict()))["difference"]
    assert values["stage"] == "P1" and values["row"]["path"] == "fc1.weight" and values["row"]["missing"] == "candidate"
    (finding,) = findings["channels are swapped (BGR)"]
    values = finding.report.to_dict()["difference"]
    assert values["row"]["kind"] == "output" and values["replay"]["where"] == "input"


def test_the_selftest_fails_where_a_fault_is_missed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    harmless = [Fault("no fault at all")]
    monkeypatch.setattr(module, "faults", lambda backend: harmless)
    assert show(Loopback()) == 1
    assert "WRONG" in capsys.readouterr().out
