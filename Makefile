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
GUEST_LIMIT ?= 40m
# Scenarios in which the kernel's version plays no part: what strangers send to syncd, how it is packaged and configured, what the daemons do among themselves. They run
# on the first of KERNELS; with RUN on all.
ONCE ?= ^(TestHostile.*|TestOtherUser|TestPackaging|TestInitScript|TestRefusals|TestRotation|TestRedundantLinks|TestNodesAreApart|TestSingleOwner|TestKillAnywhere|TestCompare|TestFlush|TestJoinKernel|TestLoss|TestRollingRestart|TestKillAndRestart|TestNothingLeft|TestMirrorLag)$$
# What only measures, or shows how other means do: it runs with RUN and in `make soak`. (It comes behind ONCE: of two patterns that match a test, go test heeds the first one, which skips a part of it only.)
BESIDE ?= ^TestMoves$$|^TestRollingRestart$$/^kernel$$
# RUN selects tests by name, as go test -run does.
RUN ?=
# Further options of go test, -v for instance.
TESTFLAGS ?=

# Packages whose tests run here, and those that run in a guest. Those in PURE have one goroutine, in their tests as well, and nothing to race with: without the
# detector they take a sixth of the time. Farms of real processes are measured while nothing else runs.
PURE  = ./proto/... ./lib/flow ./lib/peer ./saru/alloc ./saru/core ./saru/sim ./syncd/engine ./syncd/table
HERE  = $$($(GO) list ./... | grep -v -x -F -e "$$($(GO) list $(PURE) ./integration/scenarios ./integration/kernel ./integration/demo ./integration/native)")
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
test-here: deps build ## only the tests that need no IPVS, with the race detector where there is more than one goroutine
	$(GO) test -race -timeout 15m -run '$(RUN)' $(TESTFLAGS) $(HERE)
	$(GO) test -timeout 15m -run '$(RUN)' $(TESTFLAGS) $(PURE)
	$(GO) test -count=1 -timeout 10m -run '$(RUN)' $(TESTFLAGS) ./integration/native

.PHONY: test-native
test-native: deps ## only farms of real saru processes on this machine, with what they measure (SARU_ROUNDS=50 for more)
	$(GO) test -count=1 -v -timeout 1h -run '$(RUN)' $(TESTFLAGS) ./integration/native

# What `make install` installs, for the guests; scenarios use it as it stands.
STAGE = bin/root
.PHONY: stage
stage: build
	@rm -rf $(STAGE)
	@$(MAKE) --no-print-directory -s install DESTDIR="$(CURDIR)/$(STAGE)" PREFIX=/usr >/dev/null

.PHONY: test-guest
test-guest: deps-lab stage ## only the tests on real IPVS kernels
	@skip='$(if $(RUN),,$(BESIDE))'; for k in $(KERNELS); do \
		echo "== Linux of Debian $$k"; \
		SARU_LAB_TOOLS=tshark SARU_LAB_FILES=$(STAGE):/ CGO_ENABLED=0 $(GO) test -p 1 -count=1 -timeout $(GUEST_LIMIT) -run '$(RUN)' -skip "$$skip" $(TESTFLAGS) -exec "$(CURDIR)/bin/labrun --timeout $(GUEST_LIMIT) --kernel $$k" $(GUEST) || exit 1; \
		test -n '$(RUN)' || skip='$(ONCE)|$(BESIDE)'; \
	done

.PHONY: test-kernels
test-kernels: ## the guest tests on all kernels, Debian's newest included
	$(MAKE) test-guest KERNELS="$(ALL_KERNELS)" ONCE='^$$'

# Scenarios that SARU_ROUNDS makes longer, and what a round is:
#   TestKillAnywhere    syncd killed on a random director while one joins, while losses are repaired, or while keys change
#   TestKillAndRestart  syncd killed twice under downloads: while it mirrors, and in its start or its stop
#   TestNothingLeft     syncd killed in its start and in its stop, then --cleanup
#   TestRollingRestart  three directors switched off, one after the other, under downloads
#   TestLoss            3 s of load under each kind of loss. Not in `soak`: its tables, which a test reads as often as
#                       it needs to see all of them, would grow with the rounds
# A hundred rounds of TestKillAnywhere take 20 minutes on two cores without hardware virtualisation; the others have not been timed at
# this length.
.PHONY: soak
soak: soak-syncd soak-saru ## everything at length, hours

.PHONY: soak-syncd
soak-syncd: deps-lab build ## kill syncd at random 100 times in each of some scenarios (SARU_ROUNDS=100)
	SARU_ROUNDS=$${SARU_ROUNDS:-100} $(MAKE) test-guest GUEST=./integration/scenarios/... GUEST_LIMIT=2h RUN='^(TestKillAnywhere|TestKillAndRestart|TestNothingLeft)'
	SARU_ROUNDS=10 $(MAKE) test-guest GUEST=./integration/scenarios/... GUEST_LIMIT=1h RUN='^TestRollingRestart'

.PHONY: soak-saru
soak-saru: deps deps-lab build ## saru at length: 100,000 simulated schedules, 50 deaths, 10 minutes of overload, 200 rounds of random faults
	SARU_SCHEDULES=$${SARU_SCHEDULES:-100000} $(GO) test -count=1 -v -timeout 6h -run '^Test(Quorum|ByTableSize|Available)$$' ./saru/sim
	SARU_ROUNDS=$${SARU_DEATHS:-50} $(MAKE) test-native
	SARU_LAB_MEMORY=6G SARU_STREAMS=300 SARU_ROUNDS=$${SARU_ROUNDS:-200} $(MAKE) test-guest KERNELS=$(KERNEL) GUEST=./integration/scenarios/... GUEST_LIMIT=4h RUN='^(TestSingleOwner|TestMoves)$$' TESTFLAGS=-v

.PHONY: lint
lint: deps $(GOLANGCI_LINT) ## vet, staticcheck, layering and format
	$(GO) vet ./...
	$(GOLANGCI_LINT) run ./...
	$(GO) mod tidy -diff
	$(GO) mod verify

# FUZZTIME is the time for each target; by default all of them share 10 minutes.
FUZZTIME  ?=
FUZZTOTAL ?= 600
# "context deadline exceeded" without an input that fails is no finding: go test says so when its time ends while a worker is busy (go.dev/issue/75804,
# mended in Go 1.27).
.PHONY: fuzz
fuzz: deps ## run every fuzz target (10 minutes in total, or FUZZTIME each)
	@set -e; targets=$$(for p in $$($(GO) list ./...); do $(GO) test -run '^$$' -list '^Fuzz' $$p | sed -n "s|^Fuzz.*|$$p &|p"; done); \
	n=$$(echo "$$targets" | grep -c . || true); \
	test "$$n" -gt 0 || { echo "no fuzz targets"; exit 1; }; \
	each="$(FUZZTIME)"; test -n "$$each" || each="$$(( ($(FUZZTOTAL) + n - 1) / n ))s"; \
	echo "$$n targets, $$each each"; \
	echo "$$targets" | while read -r p f; do \
		echo "== $$f in $$p"; \
		said=$$($(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime "$$each" -fuzzminimizetime 100x $$p 2>&1) || \
			case "$$said" in *"Failing input"*) echo "$$said"; exit 1;; *"context deadline exceeded"*) ;; *) echo "$$said"; exit 1;; esac; \
		echo "$$said" | tail -3; \
	done

BENCH      ?= .
BENCHCOUNT ?= 6
.PHONY: bench
bench: deps $(BENCHSTAT_BIN) ## run the benchmarks; figures in out/bench.txt
	@mkdir -p out
	@set -e; packages=$$(for p in $(HERE) $$($(GO) list $(PURE)); do $(GO) test -run '^$$' -list '^Benchmark' $$p | sed -n "s|^Benchmark.*|$$p|p"; done | sort -u); \
	test -n "$$packages" || { echo "no benchmarks"; exit 1; }; \
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(BENCHCOUNT) -timeout 1h -p 1 $$packages >out/bench.txt || { cat out/bench.txt; exit 1; }
	$(BENCHSTAT_BIN) out/bench.txt

GUESTCOUNT ?= 3
.PHONY: bench-guest
bench-guest: deps-lab stage $(BENCHSTAT_BIN) ## syncd beside the kernel's own sync, in a guest; figures in out/bench-guest.txt
	@mkdir -p out
	SARU_LAB_TOOLS=tshark SARU_LAB_FILES=$(STAGE):/ CGO_ENABLED=0 $(GO) test -timeout $(GUEST_LIMIT) -run '^$$' -bench '$(BENCH)' -benchtime 1x -count $(GUESTCOUNT) \
		-exec "$(CURDIR)/bin/labrun --timeout $(GUEST_LIMIT) --kernel $(KERNEL)" ./integration/scenarios >out/bench-guest.txt || { cat out/bench-guest.txt; exit 1; }
	$(BENCHSTAT_BIN) out/bench-guest.txt

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
