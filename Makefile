# Two commands: `make up` starts Nacre, `make test` runs every test.

GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
AGENT   := internal/agentbin/assets/nacre-agent
INIT    := runtime/firecracker/assets/guestinit

export CGO_ENABLED = 0
# One set of flags everywhere, so that gVisor is compiled once.
export GOFLAGS := $(GOFLAGS) -trimpath

.PHONY: build up test lint unit e2e test-firecracker firecracker-host test-cgroup2 guest-kernel bench fuzz deps clean generate help

build: bin/nacre

# help lists what can be made.
help:
	@echo "Nacre needs Debian 12 or newer, root and Go 1.26 or newer; what else it needs it installs."
	@echo
	@echo "  make up       build bin/nacre, prepare this host, start the server (bin/nacre up --help: its settings)"
	@echo "  make build    build bin/nacre alone"
	@echo "  make test     every test; lint, unit, e2e, test-firecracker and test-cgroup2 are parts of it"
	@echo "  make firecracker-host   an emulated host with Firecracker, to try it by hand"
	@echo "  make bench    measure the figures of the README"
	@echo "  make fuzz     half a minute for each parser of strangers' bytes"
	@echo "  make clean    delete what was built"

# Go's build cache knows better than make what is out of date.
.PHONY: bin/nacre $(AGENT) $(INIT)
bin/nacre: $(AGENT) $(INIT)
	$(GO) build -ldflags "$(LDFLAGS)" -o $@ ./cmd/nacre

$(AGENT):
	$(GO) build -ldflags "-s -w" -o $@ ./cmd/nacre-agent

$(INIT):
	$(GO) build -ldflags "-s -w" -o $@ ./runtime/firecracker/guestinit

# up builds, prepares the host and runs the server in the foreground.
up: build
	bin/nacre up

# test runs everything: rules, contract suites on the real things, the published
# SDKs end to end, and on emulated hosts Firecracker and version 2 of cgroups. It needs
# root and installs what it needs.
test: deps build lint unit e2e test-cgroup2 test-firecracker

lint:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt: $$bad"; exit 1; fi
	$(GO) vet ./...

unit: deps build
	$(GO) test -timeout 30m -p 2 $$($(GO) list ./... | grep -v -e /e2e$$ -e /e2e/microvm$$ -e /runtime/firecracker$$)

e2e: deps build
	$(GO) test -timeout 45m -count 1 ./e2e

# test-firecracker runs Firecracker, its jailer and the driver, what its machines reach
# of the network, and the server with published SDKs and the end-to-end tests of previews
# and isolation: natively where this host's KVM runs guests, or else inside QEMU machines
# with emulated virtualization, which it makes of Debian's packages (nacretest/kvmhost). It
# says which, and why.
# FIRECRACKER is a pattern of tests. What concerns cgroups runs on an emulated host with
# those of version 1 too.
FIRECRACKER := .
FIRECRACKER_V1 := TestMachine|TestRuntime/^(Boot|Usage|RecoverEnded|Sweep|Fault14.*)$$
test-firecracker: deps build
	$(GO) test -v -p 1 -timeout 60m -count 1 -run '$(FIRECRACKER)' ./runtime/firecracker/... ./e2e/microvm
	NACRE_CGROUP_V1=1 $(GO) test -v -timeout 60m -count 1 -run '$(FIRECRACKER_V1)' ./runtime/firecracker
	$(GO) test -v -count 1 ./guest/kernel

# firecracker-host is a host of test-firecracker's for somebody at a terminal: what is typed
# is run on it, and it says where clients reach the server that `up` starts there.
firecracker-host: deps build
	$(GO) test -c -o bin/firecracker-host ./e2e/microvm
	cd e2e/microvm && NACRE_BY_HAND=1 ../../bin/firecracker-host

# test-cgroup2 runs the tests of cgroups and the gVisor driver's, and the life of a
# sandbox on a server, on Debian's kernel with version 2 of cgroups alone, as a fresh
# Debian has it, whatever this host has: inside a QEMU machine. CGROUP2 is a pattern of
# tests.
CGROUP2 := TestLife|TestPrepare|TestLabel|TestSnapshotNearMemoryLimit|TestSnapshotsInARow|TestAhead|TestKilled|TestHandle|TestSweepOf|TestConfined|TestContract$$/^(Boot|Usage|Recover.*|Sweep|Fault1.*|SnapshotOf.*|RestoreKeeps|Fault27.*)$$
test-cgroup2: deps build
	NACRE_EMULATE=1 $(GO) test -v -timeout 30m -count 1 -run '$(CGROUP2)' ./runtime/gvisor/cgroup2

# guest-kernel builds the kernel of Firecracker's guests and prints its path.
guest-kernel:
	@guest/kernel/build.sh

# bench measures what the README shows; raw results go to bench/results.
bench: deps build
	$(GO) run ./bench $(BENCH)

# fuzz gives every fuzz target half a minute.
fuzz:
	./scripts/fuzz.sh

deps:
	@./scripts/deps.sh

clean:
	rm -rf bin $(AGENT) $(INIT)
