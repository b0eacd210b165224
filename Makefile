# make train: the built-in example, from an empty checkout to scores and masks.
# make test: style, types, tests.
# make browser: the page that runs in the browser, into build/browser; WEIGHTS=u2netp for others.
# make test-litert: the tests that need LiteRT's converter, in its own environment.
# make docs: the guides and the API reference as a website, in build/docs/site.
PYTHON ?= python3
BIN := .venv/bin
DATA := data/synthetic
RUN := runs/synthetic
WEIGHTS ?= lite
SCRIPTS := train.py train_multi_GPU.py validation.py predict.py export.py convert.py app.py hubconf.py \
	draw_masks.py fetch_weights.py my_dataset.py transforms.py setup.py

# Test workers: one more than there are processors, as some tests wait for other processes.
WORKERS := $$(($$(getconf _NPROCESSORS_ONLN) + 1))

# Build the two test environments in parallel.
MAKEFLAGS += --jobs=2

.PHONY: train test browser docs clean
.DELETE_ON_ERROR:

train: $(RUN)/.trained
	$(BIN)/python validation.py --weights $(RUN)/best.pt --data-path $(DATA) --json $(RUN)/scores.json
	$(BIN)/python predict.py $(DATA)/DUTS-TE/DUTS-TE-Image --weights $(RUN)/best.pt --output $(RUN)/masks
	@echo "Scores: $(RUN)/scores.json  Masks: $(RUN)/masks/  Log: $(RUN)/log.csv"
	@echo "Curves: $(RUN)/curves.png  Sample sheets: $(RUN)/samples/"

# An interrupted run is resumed: --resume auto starts a new one only if there is no checkpoint.
$(RUN)/.trained: | .venv/ready
	$(BIN)/python -m train_utils.data.synthetic --output $(DATA)
	$(BIN)/python train.py --data-path $(DATA) --model u2net_lite --img-size 96 --crop-size 80 \
		--epochs 12 --batch-size 8 --lr 2e-3 --ema 0.98 --eval-interval 6 --output-dir $(RUN) --resume auto
	touch $@

test: .venv/ready-to-test .venv-rembg/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src train_utils web $(SCRIPTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/ready-to-test: .venv/ready pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# rembg, to test exports to it, has its own environment: its packages conflict with pysodmetrics'.
.venv-rembg/ready:
	$(PYTHON) -m venv .venv-rembg
	.venv-rembg/bin/python -m pip install --quiet 'rembg[cpu]==2.0.86'
	touch $@

browser: .venv/ready
	npm ci --prefix web/browser --ignore-scripts --no-audit --no-fund
	$(BIN)/python web/browser/build.py --weights "$(WEIGHTS)"

# LiteRT's converter pins versions incompatible with pydantic (used by schemathesis and gradio), so it
# has its own environment, layered on the packages of .venv, mainly torch. Not part of make test: it
# takes another 800 MB, and each conversion takes a minute.
test-litert: .venv-litert/ready
	OMP_NUM_THREADS=1 .venv-litert/bin/python -m pytest -q -p no:anyio tests/export/test_phones.py

.venv-litert/ready: .venv/ready-to-test pyproject.toml
	$(PYTHON) -m venv .venv-litert
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-litert/packages
	mv .venv-litert/packages "$$(.venv-litert/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	.venv-litert/bin/python -m pip install --quiet 'litert-torch==0.10.0'
	touch $@

# Built from copies: the reference is of the installed package, and griffe knows only "Examples:".
docs: .venv-docs/ready
	rm -rf build/docs build/lib build/bdist.*
	mkdir -p build/docs/pages
	cp -r --parents README.md CHANGELOG.md CONTRIBUTING.md docs weights/README.md build/docs/pages
	.venv-docs/bin/python -m pip install --quiet --no-deps --target build/docs/package .
	find build/docs/package -name '*.py' -exec sed -i 's/^\( *\)Example:$$/\1Examples:/' {} +
	.venv-docs/bin/mkdocs build --quiet --strict

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet 'mkdocs-material==9.*' 'mkdocstrings[python]==1.*' ruff
	touch $@

clean:
	rm -rf .venv .venv-rembg .venv-litert .venv-docs build web/browser/node_modules data/synthetic runs/synthetic
