# `make` alone lists the targets: each says what it does after its ##.
PREFIX ?= /usr/local
DESTDIR ?=
ARGS ?=
PYTHON := .venv/bin/python
# Where PYTHONDONTWRITEBYTECODE is set, each worker would rewrite the assertions of all tests anew: 2 s of its time.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest
INSTALLER := build/installer/bin/python
INTERPRETER ?= $$(readlink -f $(INSTALLER))
PIP_OPTIONS ?= --only-binary :all:
LIBRARY := $(PREFIX)/lib/statepipe
LAUNCHER := $(PREFIX)/bin/statepipe
UNITS := $(PREFIX)/lib/systemd/system
SYSUSERS := $(PREFIX)/lib/sysusers.d/statepipe.conf
TMPFILES := $(PREFIX)/lib/tmpfiles.d/statepipe.conf
MAN := $(PREFIX)/share/man
COMPLETION_bash := $(PREFIX)/share/bash-completion/completions/statepipe
COMPLETION_zsh := $(PREFIX)/share/zsh/site-functions/_statepipe
COMPLETION_fish := $(PREFIX)/share/fish/vendor_completions.d/statepipe.fish

.DEFAULT_GOAL := help
.PHONY: help demo test unit faults lint bench man lock install installed uninstall deb debtest clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "ARGS= passes more to pytest or the benchmark; PREFIX= and DESTDIR= say where to install"

demo: ## see a running guest saved, killed and brought back
	@tools/setup qemu
	@$(PYTHON) tools/demo.py $(ARGS)

test: ## all tests, with real QEMUs (a first run fetches what is missing)
	@tools/setup test
	@$(PYTHON) -m compileall -q statepipe
	@$(PYTEST) $(ARGS)

unit: ## the tests that need no QEMU
	@tools/setup
	@$(PYTHON) -m compileall -q statepipe
	@$(PYTEST) tests/unit $(ARGS)

faults: ## the long fault runs that `make test` leaves out
	@tools/setup test
	@rm -f build/faults.txt; mkdir -p build
	@STATEPIPE_FAULTS_TABLE=$(CURDIR)/build/faults.txt $(PYTEST) -m faults $(ARGS); status=$$?; \
		sort build/faults.txt 2>/dev/null; exit $$status

lint: ## ruff and mypy --strict
	@tools/setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

bench: ## how fast, against the tools that people use today
	@tools/setup bench
	@$(PYTHON) -m compileall -q statepipe
	@$(PYTHON) -m tests.bench $(ARGS)

man: ## check the manual pages and show the first
	@mandoc -Tlint -W warning $$(grep -L "^\.so " man/*)
	@mandoc -Tutf8 man/statepipe.1

lock: ## requirements.lock anew: what install takes, with its hashes
	@tools/lock

# -I keeps the user's environment and current folder off Python's path, -S the host's packages: all that is needed lies
# in LIBRARY, and to look for others takes 3 ms of each start. As the launcher sets no variable, ours stays out of the
# programs that statepipe starts. pip's own bin/ goes: its launchers start the installer's Python.
# Nothing but what requirements.lock names by its hash is installed or run: so no build tools, and no sources, which
# would need such. Where a machine has no wheels: PIP_OPTIONS= (and a compiler).
define LAUNCHER_TEXT
import sys

sys.path.insert(0, "$(LIBRARY)")
from statepipe.start import entry

entry()
endef

define install_completion
install -d "$(DESTDIR)$(dir $(2))"
	PYTHONPATH="$(DESTDIR)$(LIBRARY)" $(INSTALLER) -P -m statepipe completion $(1) >"$(DESTDIR)$(2)"
	chmod 644 "$(DESTDIR)$(2)"

endef

install: ## into PREFIX (/usr/local), under DESTDIR if given
	@umask 022 && $(MAKE) --no-print-directory installed # root's own may shut all others out

installed: export TEXT = $(LAUNCHER_TEXT)
installed:
	@tools/setup install
	rm -rf "$(DESTDIR)$(LIBRARY)"
	@$(INSTALLER) -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --require-hashes $(PIP_OPTIONS) \
		--target "$(DESTDIR)$(LIBRARY)" -r requirements.lock
	rm -rf "$(DESTDIR)$(LIBRARY)/bin"
	@find statepipe \( -name '*.py' -o -name py.typed \) -exec install -D -m 644 '{}' "$(DESTDIR)$(LIBRARY)/{}" \;
	@$(INSTALLER) -m compileall -q -s "$(DESTDIR)" "$(DESTDIR)$(LIBRARY)/statepipe"
	install -d "$(DESTDIR)$(dir $(LAUNCHER))" "$(DESTDIR)$(MAN)/man1" "$(DESTDIR)$(MAN)/man5"
	@printf '%s\n' "#!$(INTERPRETER) -IS" "$$TEXT" >"$(DESTDIR)$(LAUNCHER)"
	chmod 755 "$(DESTDIR)$(LAUNCHER)"
	install -m 644 man/*.1 "$(DESTDIR)$(MAN)/man1"
	install -m 644 man/*.5 "$(DESTDIR)$(MAN)/man5"
	install -d "$(DESTDIR)$(UNITS)"
	sed 's|/usr/local/bin/statepipe|$(LAUNCHER)|' systemd/statepipe-receive@.service >"$(DESTDIR)$(UNITS)/statepipe-receive@.service"
	chmod 644 "$(DESTDIR)$(UNITS)/statepipe-receive@.service"
	install -m 644 systemd/statepipe-receive@.socket "$(DESTDIR)$(UNITS)"
	install -D -m 644 systemd/statepipe.sysusers "$(DESTDIR)$(SYSUSERS)"
	install -D -m 644 systemd/statepipe.tmpfiles "$(DESTDIR)$(TMPFILES)"
	$(foreach shell,bash zsh fish,$(call install_completion,$(shell),$(COMPLETION_$(shell))))

uninstall: ## take away what install put there
	rm -rf "$(DESTDIR)$(LIBRARY)"
	rm -f "$(DESTDIR)$(LAUNCHER)" $(patsubst man/%.1,"$(DESTDIR)$(MAN)/man1/%.1",$(wildcard man/*.1)) "$(DESTDIR)$(MAN)/man5/statepipe-state.5" "$(DESTDIR)$(UNITS)/statepipe-receive@."* "$(DESTDIR)$(SYSUSERS)" "$(DESTDIR)$(TMPFILES)"
	rm -f $(foreach shell,bash zsh fish,"$(DESTDIR)$(COMPLETION_$(shell))")

deb: ## build/statepipe_*.deb, for Debian 12 and 13
	@tools/setup install
	@tools/deb

debtest: ## install, use and purge that package in bare Debians (root, mmdebstrap, the network)
	@tools/debtest

clean: ## remove .venv, caches and build leftovers
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
