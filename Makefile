# `make test` and `make demo` need nothing but Python 3.11 or newer: they make the environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Two workers, each with a thread of its own: with more threads than cores, those of one worker wait for the other's.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install test test-slow test-browser test-oldest lint docs dist demo clean

help:
	@echo "make install    create .venv with the package and its tests"
	@echo "make test       run the quick, offline tests"
	@echo "make test-slow  run the long ones"
	@echo "make test-browser  run those that drive Chromium; installs Debian's if there is none"
	@echo "make test-oldest  run the quick tests on the oldest dependencies that pyproject.toml allows"
	@echo "make demo       generate videos, train, test, save, load and predict (about 5 minutes on two cores)"
	@echo "make lint       formatting, mistakes that tools find, types, spelling"
	@echo "make docs       build the site in docs/_build/html, run its notebooks, check its links"
	@echo "make dist       build and check the wheel and the source release in dist/"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

test: install
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow

test-browser: install
	command -v chromium chromium-browser google-chrome || \
		{ apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium; }
	$(BIN)/python -m pytest -q -m browser

# An environment of its own, on Python 3.11: later ones are newer than some of the oldest releases.
.venv-oldest/installed: pyproject.toml tests/constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint tests/constraints-oldest.txt --editable '.[test]'
	@touch $@

test-oldest: .venv-oldest/installed
	PATH=$(CURDIR)/.venv-oldest/bin:$$PATH $(PYTEST)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/codespell

dist: install
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# A warning is an error. `make docs DOCS_EXECUTE=off` leaves out the notebooks' results: quick, for work on the text.
docs: install
	$(BIN)/python docs/colab.py --check
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs 2 --builder html docs docs/_build/html
	$(BIN)/python docs/check_site.py docs/_build/html

# Every step is a command you can type yourself. `best.ckpt` is the epoch with the best validation accuracy.
NEWEST_RUN = $$(ls -td runs/demo/version_* | head -1)
demo: install
	@echo "== 1/6 Write videos of moving, growing and turning shapes -> demo/data"
	python -m datamodules.synthetic demo/data
	@echo "== 2/6 Train VideoMamba-Nano -> runs/demo"
	lightning fit --config zoo/recipes/demo.yaml
	@echo "== 3/6 Test on held-out videos, several views of each -> runs/demo"
	lightning test --config zoo/recipes/demo.yaml --ckpt_path best
	@echo "== 4/6 Save in the hub format -> demo/model"
	zoo convert $(NEWEST_RUN)/checkpoints/best.ckpt demo/model
	@echo "== 5/6 Load it back in Python"
	python -c 'import zoo; model = zoo.load("demo/model"); print(type(model).__name__, "knows", model.class_names)'
	@echo "== 6/6 What happens in held-out videos -> demo/predictions.png"
	zoo predict demo/model $$(for class in demo/data/test/*; do ls $$class/*.mp4 | head -1; done) --topk 3 --plot demo/predictions.png
	@echo
	@echo "Done. The picture is demo/predictions.png, the model demo/model, curves $(NEWEST_RUN)/curves.png, videos demo/data/test."
	@echo "Next: .venv/bin/zoo predict demo/model VIDEO        ask about a video of yours"
	@echo "      .venv/bin/zoo list                            the pretrained models"
	@echo "      .venv/bin/lightning fit --config finetune --data.root MY_VIDEOS      train on a folder per class of your own"
	@echo "The commands are found without .venv/bin/ after: source .venv/bin/activate"

clean:
	rm -rf demo runs/demo
