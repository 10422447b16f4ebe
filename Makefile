# Two commands do all the set-up on a machine with Python 3.11+, git and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# environments of the programs that benchmarks compare with, one for each, since their pins exclude each other
PEERS := .peers
PINS := validation/benchmarks/peers
PIP := -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-consumers consumer-matrix lint format wheel clean bench bench-export peers peer-genai peer-openvino peer-llama peer-llama-quantiser

# readers of exported folders, each in an environment of its own
CONSUMERS := .consumers
CONSUMER_STAMPS := $(patsubst %,$(CONSUMERS)/%/.installed,genai node openvino optimum)

demo: $(STAMP)
	$(BIN)/gemma-export --variant tiny --force
	$(BIN)/gemma-run ./gemma-tiny-fp32 "def read_lines(path):"

# each file in one of two processes: its fixtures are made once
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-consumers: $(STAMP) $(CONSUMER_STAMPS)
	$(BIN)/python -m pytest -m consumers tests/consumers

# accepts what the contract tests found: keeps the results and rewrites the README's table
consumer-matrix: $(STAMP) $(CONSUMER_STAMPS)
	-$(BIN)/python -m pytest -m consumers tests/consumers
	$(BIN)/python tests/consumers/matrix.py $(CONSUMERS)/results.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

# make bench BENCH="--shape tiny --rounds 1"; llama.cpp's quantiser is compiled once, minutes
bench: $(STAMP) peers peer-llama-quantiser
	$(BIN)/python validation/benchmarks speed $(BENCH)

# make bench-export BENCH="--shape tiny --rounds 1"; see validation/benchmarks/README.md
bench-export: $(STAMP) peers
	$(BIN)/python validation/benchmarks export $(BENCH)

peers: peer-genai peer-openvino peer-llama

peer-genai: $(PEERS)/genai/.installed

peer-openvino: $(PEERS)/openvino/.installed

peer-llama: $(PEERS)/llama/.installed $(PEERS)/llama/.source

# compiles llama.cpp: needs cmake and a C++ compiler, takes minutes
peer-llama-quantiser: $(PEERS)/llama/.quantiser

$(PEERS)/%/.installed: $(PINS)/%.txt
	test -x $(PEERS)/$*/bin/python || $(PYTHON) -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/python $(PIP) install -r $<
	touch $@

$(PEERS)/llama/.source: $(PINS)/llama-source.txt $(PEERS)/llama/.installed
	rm -rf $(PEERS)/llama/sdist $(PEERS)/llama/source
	$(PEERS)/llama/bin/python $(PIP) download --no-deps --no-binary llama-cpp-python --dest $(PEERS)/llama/sdist -r $<
	mkdir $(PEERS)/llama/source
	tar -xzf $(PEERS)/llama/sdist/*.tar.gz --strip-components 1 -C $(PEERS)/llama/source
	touch $@

$(PEERS)/llama/.quantiser: $(PEERS)/llama/.source
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(PEERS)/llama/bin/python $(PIP) install --no-deps $(PEERS)/llama/sdist/*.tar.gz
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,export,validate,dev]"
	touch $@

$(CONSUMERS)/node/.installed: tests/consumers/package.json tests/consumers/package-lock.json
	mkdir -p $(@D)
	cp $^ $(@D)
	# the CPU binary is in the package: what its install script would fetch is CUDA's
	cd $(@D) && ONNXRUNTIME_NODE_INSTALL=skip npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

$(CONSUMERS)/%/.installed: tests/consumers/requirements-%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(CONSUMERS) build dist *.egg-info
