# Everything that can be done here; `make help` lists it.
GO ?= go
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)
export CGO_ENABLED = 0

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/marsd and bin/marsadm, static
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

.PHONY: help build
