# Each verb does its own set-up: a fresh Debian with python3-venv and make is enough.
#   make run      boot the teaching kernel       ARGS='--kernel vmlinuz ...' for another
#   make quick    some of every suite, no guests: under a minute
#   make test     what CI runs, guests included  ARGS='tests/mmu -k walk' for some
#   make nightly  what is marked slow
#   make soak     the properties, with fresh examples    MINUTES=5 for less than an hour
#   make clock    the guest's clock on a terminal, beside the host's
#   make lint     style, types, imports
#   make native   the machine code of emu86/native, from its text
#   make wheel    the built wheel, installed by itself and used
#   make bench    docs/performance.md, an hour or more  ARGS='--against REV' for another tree

VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
MINUTES ?= 60

.PHONY: run quick test nightly soak clock lint native wheel bench guests debian lock clean
.DELETE_ON_ERROR:

run: $(READY)
	@$(BIN)/emu86 run --stats $(ARGS)

# Of the techniques patch, without paging where cases are tried both ways, and of every
# property a tenth of its examples.
quick: $(READY)
	$(BIN)/python -m pytest -n 2 -m 'not guest and not slow and not not_quick' \
		-k 'not iopl and not public and not paged' --emu86-examples=0.1 $(ARGS)

test: guests
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(ARGS)

# The same each time: one seed, and hypothesis's profile for CI.
nightly: $(READY)
	@tools/install_debian gcc-multilib cpio dosfstools genisoimage isolinux mtools \
		syslinux syslinux-common
	$(BIN)/python -m tools.fetch_guests --nightly
	HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n 2 -m slow --emu86-seed=0 $(ARGS)

soak: $(READY) debian
	$(BIN)/python tools/soak.py $(MINUTES)

clock: guests
	$(BIN)/python tools/measure_clock.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

native: $(READY)
	$(BIN)/python -m tools.native.build

wheel: $(READY)
	$(BIN)/python tools/check_wheel.py

bench: guests
	$(BIN)/python -m bench $(ARGS)

guests: $(READY) debian
	$(BIN)/python -m tools.fetch_guests

debian:
	@tools/install_debian

# pip's own upgrade notice would be noise; hashes make the lock file the last word.
$(READY): requirements.lock pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--no-deps --no-build-isolation --editable .
	touch $@

# One lock file for all platforms and Python versions; needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --group dev \
		pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) build dist
