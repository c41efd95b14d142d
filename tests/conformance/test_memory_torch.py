"""PyTorch on the CPU keeps freed memory, but in float32 training: seen from the pages that the kernel had to clear."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

SCRIPT = """
import gc, json, resource, sys
import numpy as np
from tlx.backend import Batch, ModelSpec, Preprocess
from tlx.backend.registry import load
from tlx.models.zoo import architecture

backend, arch = load("torch"), architecture("squeezenet1_0")
model = backend.build(ModelSpec(arch.name, 2, arch.head, arch.options), "cpu", "float32")
specs = backend.param_specs(model)
labels = np.arange(16) % 2
batch = Batch(np.zeros((16, 3, 224, 224), np.uint8), labels, labels, Preprocess(224))

def cleared(step):
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(), step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2e6

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

found = {"evaluation": cleared(lambda: backend.fetch([*backend.evaluate(model, backend.put(model, batch))]))}
if "evaluation" in sys.argv:
    print(json.dumps(found))
    raise SystemExit
train = lambda: backend.fetch([*backend.backward(model, backend.put(model, batch))])
backend.set_phase(model, frozenset(n.name for n in specs if n.name.startswith(arch.head)), frozenset())
found["frozen"] = cleared(train)
backend.set_phase(model, frozenset(n.name for n in specs), frozenset())
found["training"] = cleared(train)
backend.fetch([*backend.evaluate(model, backend.put(model, batch))])
before = resident()
if "bfloat16" in backend.capabilities().precisions["cpu"]:
    whole = model
    model = backend.build(ModelSpec(arch.name, 2, arch.head, arch.options), "cpu", "bfloat16")
    backend.set_phase(model, frozenset(n.name for n in specs), frozenset())
    found["bfloat16"] = cleared(train)
    del whole
del model
gc.collect()
found["given back"] = before - resident()
print(json.dumps(found))
"""


def measured(*only: str, **environment: str) -> dict[str, float]:
    """Megabytes that the kernel cleared for each batch of 16, and that it had back once the model was gone."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *only],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.thorough
def test_what_is_freed_is_kept_until_the_model_is_gone() -> None:
    found = measured()
    assert found["evaluation"] < 20 and found["frozen"] < 20, found
    assert found.get("bfloat16", 0) < 20, found
    assert found["training"] > 4 * found["evaluation"], found  # else this test shows nothing
    assert found["given back"] > 100, found


def test_what_the_user_settled_stands() -> None:
    assert measured("evaluation", MALLOC_TOP_PAD_="131072")["evaluation"] > 200
