PYTHON ?= python3.11
PORT ?= 5000
export PYTHON PORT APP

.PHONY: serve test test-faults bench image push-heroku lock clean

serve: .venv/serve  ## the service on http://localhost:5000, or on $PORT
	@exec .venv/bin/gunicorn -c python:pigeonhole.gunicorn_conf app:app

test: .venv/test  ## lint, types and tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest

test-faults: .venv/test  ## load, leaks, signals, disks, clocks: 20 minutes, on Linux
	.venv/bin/pytest tests/faults

bench: .venv/serve  ## against other servers: an environment for each, and hours; QUICK=--quick makes it minutes
	.venv/bin/python -m benchmarks all $(QUICK)

image:  ## the container image `pigeonhole`, built with docker or podman
	@tools/image.sh

push-heroku:  ## the image to Heroku: make push-heroku APP=name
	@tools/push_heroku.sh

lock: .venv/serve  ## Pipfile.lock anew from Pipfile
	tools/lock.sh

clean:
	rm -rf .venv

.venv/serve: Pipfile.lock tools/environment.sh
	tools/environment.sh .venv packages learner
	@touch $@

.venv/test: .venv/serve
	tools/environment.sh .venv store formats telemetry ray dev-packages
	@touch $@
