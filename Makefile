# The house of Hyper-NixOS. `make help` lists what there is; a line that starts with a target and has ## in it is its help.

SHELL := /bin/sh
GO ?= go
GUEST ?= busybox
FUZZTIME ?= 30s
HV_CRASH_ROUNDS ?= 10
SOAKTIME ?= 30m
# A soak takes its seed from the clock and says it; with SOAKDIR it leaves the store and the log of hvd there when it fails.
SOAKSEED ?= 0
SOAKDIR ?=
BENCHTIME ?= 1s
BENCHFLAGS ?= --job all --markdown bench-nbd.md --json bench-nbd.json
# VERSION comes from the last tag; a tree without git, or without a tag, has the commit or this word.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)

programs := hvd hv-storage-fabric hv-backup
# What the race detector has something to find in.
concurrent := ./api/... ./backup/backend/... ./backup/host ./blockstore/... ./control/... ./dedup/... ./internal/unixsock ./nbd/... ./tiers/...

# An ordinary user's PATH lacks the folders of e2fsck on Debian.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help setup testserver build run demo test check lint race fuzz crash e2e bench bench-nbd soak soak-models nightly generate fmt

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## */\1	/p' Makefile | while IFS='	' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

setup: ## install by apt what demo and tests need, and only what is missing (SETUP=no: only look)
	@GUEST=$(GUEST) SETUP=$(SETUP) scripts/setup

build: ## put static programs into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(programs))

run: build ## run hvd in the foreground with its defaults
	exec bin/hvd

demo: setup build ## boot a real guest from a volume, kill hvd under it, show what is left (GUEST=debian: a whole Debian)
	@exec $(GO) run ./cmd/hv-demo --guest $(GUEST) --bin bin

# The S3 server of the tests is a module of its own: fetched and built here, as the minutes of a first time are none of the tests'. Without a network they are skipped, or fail in CI.
testserver:
	-@cd backup/backend/s3/s3test/testdata/versitygw && $(GO) tool -n versitygw >/dev/null

# Packages are tested in the order in which they are named here: those that take longest begin first, or the last one of them would run alone on most of the processors.
test: setup lint testserver ## the whole suite: lint, unit, model, crash and end-to-end tests
	HV_REQUIRE_TOOLS=1 $(GO) test -timeout 40m ./e2e ./blockstore ./backup ./...

check: lint testserver ## what to run before a commit: lint and the short tests
	$(GO) test -short -timeout 5m ./...

lint: ## gofmt, vet, staticcheck, import rule and the other house rules
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./internal/lint

race: ## short tests of the concurrent packages under the race detector (needs a C compiler)
	@SETUP=$(SETUP) scripts/setup cc
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m $(concurrent)

fuzz: ## each fuzz target in turn, FUZZTIME each; FUZZ=NBD: only those whose names have that in them
	@GO=$(GO) scripts/fuzz $(FUZZTIME) $(FUZZ)

crash: ## killed processes and power cuts, HV_CRASH_ROUNDS times the usual rounds
	HV_CRASH_ROUNDS=$(HV_CRASH_ROUNDS) $(GO) test -count=1 -timeout 2h -run 'Crash|Kill|Power|Torn|Race' ./blockstore/... ./internal/crashtest ./e2e
	HV_TEST_ENCRYPTED=1 HV_CRASH_ROUNDS=$(HV_CRASH_ROUNDS) $(GO) test -count=1 -timeout 2h -run 'Crash|Kill|Power|Torn|Race' ./blockstore ./blockstore/journal

e2e: setup testserver ## tests with real clients and real guests
	$(GO) test -count=1 -timeout 20m ./nbd ./internal/guest ./cmd/... ./e2e/...

bench: build ## Go benchmarks, then the scripts in bench/
	@SETUP=$(SETUP) scripts/setup bench
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m ./...
	@for script in bench/*.sh; do [ ! -x "$$script" ] || "$$script" || exit 1; done

bench-nbd: build ## hvd against qemu-nbd and nbdkit: some hours alone on the machine; BENCHFLAGS="--job randwrite --pairs 3" for less (--list)
	@SETUP=$(SETUP) scripts/setup bench
	$(GO) run ./bench/nbd $(BENCHFLAGS)

soak: ## guests, snapshots, resizes, kills and more on one store for SOAKTIME, then everything is verified and measured (SOAKSEED, SOAKDIR)
	HV_REQUIRE_TOOLS=1 $(GO) test -count=1 -v -timeout 0 -run '^TestSoak$$' ./e2e -soak.time $(SOAKTIME) -soak.seed $(SOAKSEED) -soak.dir '$(SOAKDIR)'

soak-models: ## model, crash and check tests with new seeds until SOAKTIME is over
	@GO=$(GO) scripts/soak-models $(SOAKTIME)

nightly: ## what is too long for every commit: xfs and btrfs on volumes, the soak, each fuzz target for 10 minutes
	@SETUP=$(SETUP) scripts/setup nightly
	HV_NIGHTLY=1 HV_REQUIRE_TOOLS=1 $(GO) test -count=1 -v -run TestFilesystem ./e2e
	$(MAKE) soak
	$(MAKE) fuzz FUZZTIME=10m

generate: ## generated code: GraphQL server and client
	$(GO) generate ./...

fmt: ## gofmt all Go files
	@git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l -w
