.DEFAULT_GOAL := help
.PHONY: help setup browser demo test lint docs bench growth gpu peers parity-zoo parity-engines parity-suite matrix matrix-timm fuzz tutorials thorough clean

help:
	@echo "make setup   make .venv with Python 3.10 and install tlx, PyTorch and OneFlow in it (11 GB)"
	@echo "make browser install Chromium, in which the tests look at pages, unless there is one (Debian and Ubuntu, as root)"
	@echo "make demo    transfer learning on scanned digits, on both frameworks (under 3 minutes)"
	@echo "make test    lint, types and the whole test suite"
	@echo "make lint    lint and types only"
	@echo "make docs    the documents as a site, in docs/_build/index.html"
	@echo "make bench   speed against hand-written loops, fastai and Lightning (4.5 hours); parts: make bench JOBS=full"
	@echo "make gpu     conformance, parity with the CPU, kills and speed on this machine's GPU, in gpu.json"
	@echo "make growth  how cost grows with image, batch, data and classes, for docs/growth.png (10 minutes)"
	@echo "make parity-zoo   compare every shared model on the two frameworks, for docs/parity-zoo.md (hours; continues)"
	@echo "make parity-engines   compare NumPy, JAX and ONNX Runtime with PyTorch, for docs/capture.md (2 minutes)"
	@echo "make parity-suite   compare ports of eight networks, equal ones and faulty ones, for docs/parity-suite.md (1 hour)"
	@echo "make matrix   run every shared model with every strategy on both, for docs/matrix.md (hours; continues)"
	@echo "make matrix-timm   train the smallest model of each family of timm, for docs/timm-models.md (an hour; continues)"
	@echo "make fuzz   20,000 hostile inputs to the command line, for docs/fuzz.md; other ones: make fuzz SEED=1"
	@echo "make tutorials   small forms of the tutorials, for docs/tutorials/; whole, resumable (hours): python examples/cifar10.py --whole"
	@echo "make thorough   the tests of which make test runs a sample only: large models, tutorials, OneFlow's share (long)"
	@echo "make clean   remove .venv and caches"

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt build-constraints.txt scripts/setup
	@scripts/setup
	@touch $@

browser:
	@scripts/browser

demo: setup
	.venv/bin/python examples/digits.py

test: lint
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: setup
	.venv/bin/sphinx-build -W --keep-going -b html docs docs/_build

bench growth: peers

peers: setup
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'

bench:
	.venv/bin/python benchmarks/bench.py $(JOBS)

growth:
	.venv/bin/python benchmarks/growth.py -o docs/growth.png

gpu: setup
	.venv/bin/python scripts/gpu.py -o gpu.json

parity-zoo: setup
	.venv/bin/python -m tlx.proof.zoo_table -o docs/parity-zoo.md

parity-engines: setup .venv-engines/installed
	.venv/bin/python examples/porting/6_other_engines.py --python .venv-engines/bin/python

.venv-engines/installed: constraints-engines.txt
	.venv/bin/python -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --constraint constraints-engines.txt jax onnx onnxruntime
	@touch $@

parity-suite: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 .venv/bin/python -m support.porting -o docs/parity-suite.md

matrix-timm: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 .venv/bin/python -m support.timm_matrix -o docs/timm-models.md

matrix: setup
	.venv/bin/python -m tlx.proof.matrix -o docs/matrix.md

fuzz: SEED = 0
fuzz: setup
	TLX_FUZZ=720 TLX_FUZZ_TABLE=docs/fuzz.md .venv/bin/pytest tests/fuzz --hypothesis-seed=$(SEED)

tutorials: setup
	for name in cifar10 ants_and_bees own_network data_size embeddings; do \
		OMP_NUM_THREADS=2 .venv/bin/python examples/$$name.py --publish || exit 1; done
	.venv/bin/python examples/porting/5_your_own_loop.py
	.venv/bin/python docs/make_tutorials.py

thorough: setup
	.venv/bin/pytest -m thorough

clean:
	rm -rf .venv .venv-engines .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
