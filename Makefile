# Everything that can be done here; `make help` lists it.
GO ?= go
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)
FUZZ ?= 5000x
SEED ?= 1
RUNS ?= 200
DURATION ?= 30m
SMOKE ?= 3m

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/marsd and bin/marsadm, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

demo: build ## two nodes on loopback: replication, handover, failover, real data; under a minute
	./demo/demo.sh

test: deps lint vuln unit race model-smoke fuzz e2e vm-smoke ## everything that can run here

deps: ## Debian packages for the tests (as root)
	./scripts/deps.sh

fmt: ## format the source
	gofmt -w cmd internal tests bench

lint: ## gofmt, vet, staticcheck, house rules, tidy modules
	@test -z "$$(gofmt -l cmd internal tests bench)" || { gofmt -l cmd internal tests bench; echo "run make fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./internal/lint

vuln: ## known vulnerabilities
	./scripts/vuln.sh

unit: ## unit, property, scenario, crash and simulator tests
	$(GO) test -count=1 ./internal/... ./cmd/... ./bench

race: ## the same under the race detector
	CGO_ENABLED=1 $(GO) test -count=1 -race -short $$($(GO) list ./internal/... ./cmd/... | grep -v internal/sim) # one goroutine there

fuzz: ## every decoder with FUZZ inputs (5000x) or for FUZZ time (60s)
	./scripts/fuzz.sh $(FUZZ)

e2e: ## real daemons, file systems and NBD clients
	MARS_SOAK_DURATION=$(SMOKE) $(GO) test -count=1 -timeout 20m $$($(GO) list ./tests/... | grep -v tests/vm)

model-smoke: ## the formal model of the role protocol, small, and every bug that can be built into it
	./model/run.sh small
	./model/run.sh bugs

model: ## the same with more nodes and longer logs
	./model/run.sh large

vm-smoke: ## one virtual machine with Debian's kernel: does the device work there?
	$(GO) test -count=1 -timeout 10m -v ./tests/vm/...

vm: ## all scenarios in virtual machines with Debian's kernel; see tests/vm/README.md
	MARS_VM=all $(GO) test -count=1 -timeout 0 -v ./tests/vm/...

sim: ## RUNS clusters from SEED on, simulated; one that fails prints how to replay it
	$(GO) run ./internal/sim/cmd/marssim -seed $(SEED) -runs $(RUNS)

soak: ## real daemons, file systems and a database under random disasters for DURATION
	MARS_SOAK_DURATION=$(DURATION) $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./tests/e2e

bench: build ## against qemu-nbd, nbdkit, rsync and others: ratios and goals, into bench/results; BENCH=FLAGS, like -quick
	$(GO) build -o bin/bench ./bench
	exec bin/bench $(BENCH)

bench-compare: ## what has changed between two results: A=FILE.json B=FILE.json
	@$(GO) run ./bench compare $(A) $(B)

clean: ## remove what was built
	rm -rf bin bench/tmp

.PHONY: help build demo test deps fmt lint vuln unit race fuzz e2e model-smoke model vm-smoke vm sim soak bench bench-compare clean
