# Sidus. `make help` lists the targets.
#
# Everything runs as root on Debian 12: trees have owners and devices, and
# machines boot in network namespaces.

SHELL := /bin/bash
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go-1.23/bin:/usr/sbin:/sbin
# Debian's Go would not fetch the toolchain that go.mod names.
export GOTOOLCHAIN := auto
export GOFLAGS ?= -buildvcs=false
# Static: the agent runs in trees of other distributions. It also lets `serve`
# drop its capabilities in all threads.
export CGO_ENABLED := 0

PREFIX ?= /usr/local
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
AGENT := boot/initramfs/files/sidus-agent

# What is costly to make lies outside the checkout, keyed by its inputs.
export SIDUS_TEST_CACHE ?= /var/cache/sidus-tests

export SIDUS_BIN := $(CURDIR)/bin/sidus

.PHONY: help build demo test unit system lab lab-test long check fmt vet lint vuln fuzz bench failover reset-test install uninstall clean deps test-deps

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: deps agent ## build bin/sidus (the agent that goes into trees is embedded)
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/sidus ./cmd/sidus

.PHONY: agent
agent:
	go build -trimpath -ldflags '-s -w' -o $(AGENT) ./cmd/sidus-agent

deps:
	@tests/setup.sh run

test-deps:
	@tests/setup.sh test

STORE := btrfs
demo: test-deps build ## build a Debian tree, promote it, and boot a virtual machine from it (STORE=zfs, STORE=lvm: from a server that has that)
	go run ./tests/demo -store $(STORE)

test: test-deps build check unit system ## everything: checks, unit and protocol tests, machines that really boot

unit: test-deps agent ## unit, conformance and protocol tests
	go test -count=1 -timeout 20m $$(go list ./... | grep -v '^sidus/tests/')

ifeq ($(STORE),btrfs)
system: test-deps build ## commands on a real store, and virtual machines that boot (STORE=zfs, STORE=lvm: machines only, from a server that has that)
	go test -count=1 -timeout 60m -v ./tests/commands ./tests/lab ./tests/liveupdate ./tests/system
	go test -count=1 -timeout 40m -short ./tests/labdisk/...
else
system: test-deps build lab
	SIDUS_TEST_STORE=$(STORE) go test -count=1 -timeout 120m -v ./tests/system
endif

failover: test-deps build ## a running machine goes on when its server dies and another takes over (STORE=zfs: both servers are machines with that)
	SIDUS_TEST_STORE=$(STORE) go test -count=1 -timeout 80m -v ./tests/failover

reset-test: test-deps build lab ## the server machine is reset while it receives, branches, rolls back and collects, on ZFS and LVM
	go test -count=1 -timeout 24h -v ./tests/reset

lab: test-deps ## build the disk of the machine with OpenZFS and LVM, if its inputs changed (8 to 20 minutes)
	go run ./tests/labdisk/cmd/labdisk

lab-test: lab ## in that machine: all tests of ZFS and LVM, the systemd unit, the kernel's NFS client and server
	SIDUS_LAB_TESTS=1 go test -count=1 -p 1 -timeout 120m -v ./tests/labdisk/...
	SIDUS_LAB_TESTS=1 go test -count=1 -p 1 -timeout 60m -v -run 'TestKernel|TestUnit' ./export/knfsd ./cmd/sidus ./tests/service

long: test-deps build ## tests that take long: real builds cold and warm, machines on foreign servers, live updates, every step of kill -9 (three hours)
	SIDUS_LONG_TESTS=1 SIDUS_VM_TESTS=1 go test -count=1 -timeout 4h ./image/build ./boot/initramfs ./tests/liveupdate ./tests/commands ./btrfs

check: fmt vet lint vuln ## formatting and static checks

fmt:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }

vet: agent
	go vet ./...

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
# Which package may import which: .depguard.yml.
DEPGUARD := github.com/OpenPeeDeeP/depguard/v2/cmd/depguard@v2.2.1
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4

lint: agent
	go run $(STATICCHECK) ./...
	go run $(DEPGUARD) ./...

# The vulnerability database is not reachable everywhere; that is said, and
# is no failure.
vuln: agent
	@out=$$(go run $(GOVULNCHECK) ./... 2>&1); status=$$?; \
	if [ $$status -eq 0 ]; then echo "govulncheck: nothing found"; \
	elif grep -Eq 'vuln\.go\.dev|dial tcp|no such host|Forbidden|HTTP GET' <<<"$$out"; then echo "govulncheck: NOT DONE, the database cannot be reached"; \
	else echo "$$out"; exit 1; fi

FUZZTIME ?= 20s
fuzz: agent ## run each fuzz test for FUZZTIME (20s)
	@for package in $$(go list ./...); do \
		for name in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$name"; go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$package || exit 1; \
		done; \
	done

SOAKTIME ?= 10m
.PHONY: soak
soak: ## connections that come, stall and break for SOAKTIME (10m), under the race detector
	CGO_ENABLED=1 SIDUS_SOAK_TIME=$(SOAKTIME) go test -race -count=1 -timeout 0 -v -run '^TestSoak$$' ./export/nfs

bench: test-deps agent ## benchmarks, as ratios against a peer in the same run
	SIDUS_LAB_TESTS=1 SIDUS_TEST_FRESH=1 go test -count=1 -timeout 30m -v -run '^TestBesideKernel$$' ./export/nfs
	go test -run '^$$' -bench . -benchtime 5x ./btrfs ./tests/storebench
	SIDUS_LAB_TESTS=1 SIDUS_TEST_FRESH=1 go test -count=1 -timeout 60m -v -run '^TestInLab$$' ./tests/storebench
	go run ./tests/bench

install: build ## install sidus, its systemd unit and its recipes below PREFIX (/usr/local)
	install -D -m 755 bin/sidus $(DESTDIR)$(PREFIX)/sbin/sidus
	install -d $(DESTDIR)$(PREFIX)/share/sidus/recipes $(DESTDIR)$(PREFIX)/lib/systemd/system
	cp -r recipes/. $(DESTDIR)$(PREFIX)/share/sidus/recipes/
	for unit in sidus sidus-replicate sidus-receive; do \
		sed 's|@PREFIX@|$(PREFIX)|g' cmd/sidus/$$unit.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service; \
	done
	sed 's|@PREFIX@|$(PREFIX)|g' cmd/sidus/keepalived.conf > $(DESTDIR)$(PREFIX)/share/sidus/keepalived.conf
	sed 's|@PREFIX@|$(PREFIX)|g' cmd/sidus/keepalived-notify > $(DESTDIR)$(PREFIX)/share/sidus/keepalived-notify
	chmod 755 $(DESTDIR)$(PREFIX)/share/sidus/keepalived-notify

uninstall: ## remove what install put there; the state folder stays
	rm -rf $(DESTDIR)$(PREFIX)/sbin/sidus $(DESTDIR)$(PREFIX)/share/sidus $(DESTDIR)$(PREFIX)/lib/systemd/system/sidus.service $(DESTDIR)$(PREFIX)/lib/systemd/system/sidus-replicate.service $(DESTDIR)$(PREFIX)/lib/systemd/system/sidus-receive.service

clean: ## remove what was built
	rm -rf bin $(AGENT)
