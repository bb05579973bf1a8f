# Thin names for what .ci/run and go do.
.PHONY: build test lint fuzz ci

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/gateway ./cmd/gateway

test:
	go test -race ./...

lint:
	.ci/run gofmt vet tidy staticcheck

fuzz:
	.ci/run fuzz

ci:
	.ci/run
