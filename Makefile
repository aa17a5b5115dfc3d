# make demo    set up .venv and run the demo cohort from slides to report (minutes, no GPU, no downloads but packages)
# make test    all tests
# make slurm   what the tests on a SLURM cluster need (Debian packages, as root); without it they are skipped
# make test-newest   the slide stages with the newest release of every package they use, in an environment of its own
# make check   style: ruff, snakefmt, snakemake --lint

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test slurm test-encoders test-newest check install

# Bars on a terminal, lines elsewhere.
PROGRESS := $(shell test -t 2 && echo "--logger rich" || echo "--quiet rules host")

demo: install
	$(BIN)/snakemake --cores all --workflow-profile workflow/profiles/workstation $(PROGRESS)
	@echo
	@echo "The report: $(CURDIR)/results/report/index.html"

test: install
	$(BIN)/python -m pytest

slurm:
	tests/slurm/cluster.sh packages

# Every encoder of the registry at full size, with random weights: 5 GB of disk, three times that of memory, an hour or more.
test-encoders: install
	$(BIN)/python -m pytest -m full_size -s tests/unit/test_networks.py

# Whether a release that is not pinned yet breaks the reading of slides or the writing of files: before pins are raised.
NEWEST := $(addprefix tests/unit/test_,$(addsuffix .py,atomic checks dicom_levels geojson grid icc openslide_fast quality \
	slide stored_tiles tiff_levels tissue vendors)) $(addprefix tests/scripts/test_,$(addsuffix .py,check_slides \
	collect_status segment_tissue tile_scans)) $(addprefix tests/reliability/test_,$(addsuffix .py,ids kinds))

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	sed -n 's/^ *- \([A-Za-z0-9_-]*\)==.*/\1/p' envs/base.yaml | sort -u >$(VENV)-newest/requirements.txt
	$(VENV)-newest/bin/pip install --disable-pip-version-check --upgrade pytest jsonschema -r $(VENV)-newest/requirements.txt
	$(VENV)-newest/bin/pip list --outdated --disable-pip-version-check
	$(VENV)-newest/bin/python -m pytest $(NEWEST)

check: install
	$(BIN)/ruff format --check scripts tests
	$(BIN)/ruff check scripts tests
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

install: $(VENV)/installed

# The pip blocks of envs/*.yaml are the one list of requirements; TRIDENT's are older and stay apart.
ENVS := $(filter-out envs/trident.yaml,$(wildcard envs/*.yaml))

$(VENV)/installed: $(ENVS)
	$(PYTHON) -m venv $(VENV)
	sed -n 's/^ *- \([A-Za-z0-9_-]*==.*\)/\1/p' $(ENVS) | sort -u >$(VENV)/requirements.txt
	$(BIN)/pip install --disable-pip-version-check -r $(VENV)/requirements.txt
	touch $@
