# saru and syncd: active-active Linux directors. `make` lists the targets.

GO      ?= go
PREFIX  ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
BINDIR  ?= $(PREFIX)/bin

# Folder of tools that are not part of the module; not tracked.
TOOLS         := $(CURDIR)/.cache/tools
GOLANGCI      := v2.15.0
BENCHSTAT     := v0.0.0-20260908200009-22c9c6c9d4da
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI)
BENCHSTAT_BIN := $(TOOLS)/benchstat-$(BENCHSTAT)

# Kernels on which `make test` proves everything; test-kernels adds Debian's newest.
KERNELS     ?= bookworm trixie
ALL_KERNELS ?= bookworm trixie sid
# Kernel of the demo.
KERNEL      ?= bookworm
# Limit of one package's tests in a guest.
GUEST_LIMIT ?= 25m
# RUN selects tests by name, as go test -run does.
RUN ?=
# Further options of go test, -v for instance.
TESTFLAGS ?=

# Packages whose tests run here, and those that run in a guest.
HERE  = $$($(GO) list ./... | grep -v -e '/integration/scenarios' -e '/integration/kernel' -e '/integration/demo')
GUEST = ./integration/kernel/... ./integration/scenarios/...

# -buildvcs=false: a clone that belongs to another user must build as well.
BUILD = CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags "-s -w"

# What must be on the host: a C compiler for the race detector, nft and ip for
# native tests (as oracles). Everything else the lab fetches for itself.
LAB_PACKAGES  = ca-certificates debian-archive-keyring
TEST_PACKAGES = $(LAB_PACKAGES) git gcc libc6-dev nftables iproute2

# need PACKAGES: install what is missing of them.
define need
	@missing=""; \
	for p in $(1); do \
		test "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null)" = installed || missing="$$missing $$p"; \
	done; \
	test -z "$$missing" && exit 0; \
	as=""; \
	if [ "$$(id -u)" != 0 ]; then \
		as="sudo"; \
		command -v sudo >/dev/null || { echo "packages are missing:$$missing; install them as root (apt-get install$$missing)" >&2; exit 1; }; \
	fi; \
	echo "installing$$missing"; \
	$$as apt-get update -q && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing
endef

.PHONY: help
help: ## list the targets
	@echo "targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | sort -u | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@echo "variables: KERNEL=$(KERNEL) KERNELS='$(KERNELS)' RUN=TestName TESTFLAGS=-v FUZZTIME=30s PREFIX=$(PREFIX) DESTDIR="

.PHONY: deps
deps: ## install what tests need on this (Debian) machine
	@command -v $(GO) >/dev/null || { echo "Go is missing: https://go.dev/dl (the version that go.mod names, or any since 1.21, which fetches it)" >&2; exit 1; }
	$(call need,$(TEST_PACKAGES))

.PHONY: deps-lab
deps-lab:
	@command -v $(GO) >/dev/null || { echo "Go is missing: https://go.dev/dl (the version that go.mod names, or any since 1.21, which fetches it)" >&2; exit 1; }
	$(call need,$(LAB_PACKAGES))

.PHONY: build
build: ## build the programs into bin/, static
	@mkdir -p bin
	$(BUILD) -o bin/ ./cmd/... ./integration/demo

.PHONY: demo
demo: deps-lab build ## show the main job: a director dies, the downloads go on (KERNEL=trixie for another kernel)
	bin/labrun --kernel $(KERNEL) bin/demo

.PHONY: test
test: test-here test-guest ## prove everything, natively and in guests with each of KERNELS

.PHONY: test-here
test-here: deps build ## only the tests that need no IPVS, with the race detector
	$(GO) test -race -timeout 10m -run '$(RUN)' $(TESTFLAGS) $(HERE)

# What `make install` installs, for the guests; scenarios use it as it stands.
STAGE = bin/root
.PHONY: stage
stage: build
	@rm -rf $(STAGE)
	@$(MAKE) --no-print-directory -s install DESTDIR="$(CURDIR)/$(STAGE)" PREFIX=/usr >/dev/null

.PHONY: test-guest
test-guest: deps-lab stage ## only the tests on real IPVS kernels
	@for k in $(KERNELS); do \
		echo "== Linux of Debian $$k"; \
		SARU_LAB_TOOLS=tshark SARU_LAB_FILES=$(STAGE):/ CGO_ENABLED=0 $(GO) test -p 1 -count=1 -timeout $(GUEST_LIMIT) -run '$(RUN)' $(TESTFLAGS) -exec "$(CURDIR)/bin/labrun --timeout $(GUEST_LIMIT) --kernel $$k" $(GUEST) || exit 1; \
	done

.PHONY: test-kernels
test-kernels: ## the guest tests on all kernels, Debian's newest included
	$(MAKE) test-guest KERNELS="$(ALL_KERNELS)"

.PHONY: soak
soak: deps-lab build ## the guest tests with many rounds (SARU_ROUNDS=50)
	SARU_ROUNDS=$${SARU_ROUNDS:-50} $(MAKE) test-guest GUEST_LIMIT=4h

.PHONY: lint
lint: deps $(GOLANGCI_LINT) ## vet, staticcheck, layering and format
	$(GO) vet ./...
	$(GOLANGCI_LINT) run ./...
	$(GO) mod tidy -diff
	$(GO) mod verify

# FUZZTIME is the time for each target; by default all of them share 10 minutes.
FUZZTIME  ?=
FUZZTOTAL ?= 600
.PHONY: fuzz
fuzz: deps ## run every fuzz target (10 minutes in total, or FUZZTIME each)
	@set -e; targets=$$(for p in $$($(GO) list ./...); do $(GO) test -run '^$$' -list '^Fuzz' $$p | sed -n "s|^Fuzz.*|$$p &|p"; done); \
	n=$$(echo "$$targets" | grep -c . || true); \
	test "$$n" -gt 0 || { echo "no fuzz targets"; exit 1; }; \
	each="$(FUZZTIME)"; test -n "$$each" || each="$$(( ($(FUZZTOTAL) + n - 1) / n ))s"; \
	echo "$$n targets, $$each each"; \
	echo "$$targets" | while read -r p f; do \
		echo "== $$f in $$p"; \
		$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime "$$each" $$p; \
	done

BENCH      ?= .
BENCHCOUNT ?= 6
.PHONY: bench
bench: deps $(BENCHSTAT_BIN) ## run the benchmarks; figures in out/bench.txt
	@mkdir -p out
	@set -e; packages=$$(for p in $(HERE); do $(GO) test -run '^$$' -list '^Benchmark' $$p | sed -n "s|^Benchmark.*|$$p|p"; done | sort -u); \
	test -n "$$packages" || { echo "no benchmarks"; exit 1; }; \
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(BENCHCOUNT) -timeout 1h -p 1 $$packages >out/bench.txt || { cat out/bench.txt; exit 1; }
	$(BENCHSTAT_BIN) out/bench.txt

.PHONY: install
install: build install-programs ## install programs and files (DESTDIR, PREFIX)

.PHONY: install-programs
install-programs: build
	install -d "$(DESTDIR)$(SBINDIR)"
	@for p in syncd saru saructl; do \
		test ! -e bin/$$p || { echo "install $(DESTDIR)$(SBINDIR)/$$p"; install -m 0755 bin/$$p "$(DESTDIR)$(SBINDIR)/$$p"; } || exit 1; \
	done

# Units, init scripts, configuration, man pages and completions: adds
# prerequisites to install.
-include packaging/install.mk

.PHONY: clean
clean: ## remove what was built
	rm -rf bin out

.PHONY: distclean
distclean: clean ## remove what was fetched as well (kernels, QEMU, tools)
	chmod -R u+w .cache .lab 2>/dev/null || true
	rm -rf .cache .lab

# Tools are named by version, so that another version is fetched when it changes.
$(GOLANGCI_LINT):
	@echo "building golangci-lint $(GOLANGCI) (once, a minute or two)"
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv $(TOOLS)/golangci-lint $@

$(BENCHSTAT_BIN):
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT)
	mv $(TOOLS)/benchstat $@
