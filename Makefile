# Everything that a developer runs. `make` alone says what there is.

GO      ?= go
BIN     := bin/localsnap
DATA    ?= ./data
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
export CGO_ENABLED ?= 0

.PHONY: help build image package test-containers run demo test lint deps fuzz chaos bench bench-io clean

help: ## say what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the static binary bin/localsnap
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./cmd/localsnap

image: build ## build the container image localsnap, of nothing but the binary
	docker build -t localsnap -f deploy/docker/Dockerfile bin

NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0

package: build ## build the Debian package
	ARCH=$$($(GO) env GOARCH) VERSION=$$(git describe --tags 2>/dev/null || echo 0.0.0-$$(git rev-parse --short HEAD)) \
	  $(GO) run $(NFPM) package --config deploy/nfpm.yaml --packager deb --target bin/

run: build ## start a whole cluster in one process, with its data under ./data
	$(BIN) dev --data $(DATA)

demo: build deps ## tell the whole story: write, snapshot, clone, flatten, kill -9, compare
	$(GO) run ./integration/demo --binary $(BIN)

test: deps lint ## all checks and tests, as CI runs them
	GOGC=400 $(GO) test -count=1 -timeout 5m ./chunkserver/store -run TestRandomHistories -histories 10000 # many, so without -race
	GOGC=400 $(GO) test -count=1 -timeout 5m ./chunkserver/replica -run TestSim -seeds 20000 # likewise
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 9m ./... # never cached: integration runs a binary that the cache does not know of

test-containers: deps ## build the image and start a cluster of containers; needs Docker
	$(GO) test -v -count=1 -timeout 10m ./integration -run TestContainers -containers

lint: ## gofmt, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt these files:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The tests' clients: nobody here wrote them.
PACKAGES := gcc:gcc nbdcopy:libnbd-bin qemu-img:qemu-utils fio:fio mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs curl:curl ip:iproute2 nft:nftables mount:mount haproxy:haproxy systemd-analyze:systemd

deps: ## install the Debian packages that the tests and the demo use
	@missing=; for p in $(PACKAGES); do \
	  PATH="$$PATH:/usr/sbin:/sbin" command -v $${p%%:*} >/dev/null || missing="$$missing $${p##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then echo "please install:$$missing"; exit 1; fi; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

FUZZTIME ?= 30s

fuzz: ## run every fuzz target for FUZZTIME
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; done; done

chaos: ## long random runs: the protocol's simulator and its mutants, the store's model, kill -9, processes and networks that fail
	$(GO) test -timeout 60m ./chunkserver/replica -run TestSim -seeds 1000000
	$(GO) test -v -timeout 60m ./chunkserver/replica -run TestMutants -mutants # -v: the seeds are told
	$(GO) test -timeout 60m ./chunkserver/store -run 'TestRandomHistories|TestKilledProcess|TestMembersAreBroughtTogether|TestStart$$' -histories 10000 -kills 50 -pairs 2000 -start-mib 1024
	$(GO) test -timeout 60m ./cmd/localsnap -run 'TestRandomStories|TestJobsOutliveLeaders' -stories 100 -story-steps 300 -depositions 100
	$(GO) test -timeout 60m ./integration -run TestKilledLeader -leader-kills 50
	$(GO) test -v -timeout 60m ./integration/nemesis -long # -v: the stalls are told

bench: ## run the benchmarks, and tell in one table what is reached beside plain files in the same run
	$(GO) run ./integration/figures -timeout 30m ./...

bench-io: build deps ## run fio against localsnap and qemu-nbd in turn; CEPH=/path/ceph.conf adds RBD
	$(GO) run ./integration/bench --binary $(BIN) $(if $(CEPH),--ceph $(CEPH)) $(BENCHFLAGS)

clean: ## remove what was built and the data of make run
	rm -rf bin $(DATA)
