# SPDX-License-Identifier: Apache-2.0

# "make" lists the targets.

VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
K8S_VERSION ?= 1.30.14
IMAGE       ?= rbd-provisioner:$(VERSION)
# NODE=1 gives the demo a node.
WITH_NODE    = $(filter-out 0,$(NODE))
# IN_TREE is not empty where kubelet mounts in-tree rbd volumes by itself.
IN_TREE      = $(filter 1.2% 1.30.%,$(K8S_VERSION))

# CEPH_VERSION is the Ceph that tests and the demo run, CEPH_CLIENT the one that the
# program and its tests are built with, as 16, 18 or 20. Empty is what is installed.
# What is built with another client runs only inside IN. CEPH_KEYS=aes256k makes the
# cluster's keys of that type, as those of a new Ceph 20 are.
export CEPH_VERSION ?=
CEPH_CLIENT ?=
CEPH_CACHE   = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rbd-provisioner/ceph
IN           = $(if $(CEPH_CLIENT),$(CEPH_CACHE)/v$(CEPH_CLIENT)/bin/enter)

# go-ceph is built against the librbd that is there; which one that is, a build tag
# has to say. Asked when a target that needs it runs.
CEPH_TAG = $(shell $(IN) hack/ceph-tag.sh)
# Without netgo and osusergo the resolver and the user database of the C library
# would be linked in. Without grpcnotrace, gRPC's traces would, and with their
# templates every method of every type: 28 MB. external-resizer brings gRPC along.
TAGS     = $(CEPH_TAG),netgo,osusergo,grpcnotrace
LDFLAGS  = -s -w -X main.version=$(VERSION)

export K8S_VERSION
export CGO_ENABLED = 1

# Tests wait for servers more than they compute: more of them side by side than
# there are cores.
TESTFLAGS = -count=1 -timeout 30m -parallel 8 -tags '$(TAGS)'
# In these our code runs in processes of its own, which are built without the race
# detector. In the tests themselves it would only take time from the servers.
PROCESSTESTS = /test/(e2e|faults|image|node)(/|$$)
# Those that wait longest begin first, and the others run beside them.
LONGESTTESTS = ./test/bench ./provisioner/goceph
# RESULTS is a folder that gets a JSON file of each target's tests.
GOTESTSUM = $(IN) go tool -modfile=hack/lint/go.mod gotestsum $(if $(RESULTS),--jsonfile '$(RESULTS)/$@-$(K8S_VERSION)-ceph-$(or $(CEPH_VERSION),installed).json') \
	--format $(or $(FORMAT),pkgname-and-test-fails) --format-hide-empty-pkg

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

.PHONY: deps
deps: ## Install the Debian packages that building and testing need
	@hack/step.sh deps 'Debian packages: installing those that are missing (a minute the first time)' hack/deps.sh

.PHONY: deps-ceph
deps-ceph: ## Install also what a Ceph beside the installed one is made with
	@hack/step.sh deps-ceph 'Debian packages: installing those that are missing (a minute the first time)' hack/deps.sh ceph

.PHONY: deps-node
deps-node: ## Install also what the tests with a node need
	@hack/step.sh deps-node 'Debian packages: installing those that are missing (two minutes the first time)' hack/deps.sh node

# Otherwise the first command that needs one prints a line for each.
.PHONY: modules
modules:
	@hack/step.sh modules 'Go modules: downloading those that are missing (a minute the first time)' go mod download

.PHONY: test-tools
test-tools: modules
	@hack/step.sh test-tools 'gotestsum: building it (a minute the first time)' go tool -modfile=hack/lint/go.mod gotestsum --version

# One test of provisioner/goceph follows the README on a newly made Ceph 20.
test test-servers test-code test-ceph: CEPH_BESIDE = 20

# Also when it is installed, if the tests see another Ceph's programs than the
# machine's.
.PHONY: ceph
ceph: ## Make the Ceph of CEPH_VERSION for the tests, and that of CEPH_CLIENT, once; as root
	@for version in $(sort $(CEPH_VERSION) $(CEPH_CLIENT) $(FAULTS_CEPH_VERSION) $(CEPH_BESIDE)); do \
		hack/step.sh ceph-$$version "Ceph $$version: making a Debian that has it (two minutes the first time)" \
			hack/ceph/build.sh $$version $(if $(CEPH_CLIENT),apart) || exit; \
	done

.PHONY: ceph-tag
ceph-tag: ceph
	@$(IN) hack/ceph-tag.sh >/dev/null

.PHONY: build
build: ceph-tag modules ## Build bin/rbd-provisioner
	@hack/step.sh build 'rbd-provisioner: building it (two minutes the first time)' \
		$(IN) go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/rbd-provisioner ./cmd/rbd-provisioner

.PHONY: image
image: ## Build the container image IMAGE with docker
	docker build --build-arg VERSION=$(VERSION) -t $(IMAGE) .

BUILD_ARCHIVE = hack/step.sh image 'Container image: building it (five minutes the first time)' hack/image/build.sh
# Goes before a command that gives the image to a node.
WITH_ARCHIVE  = PROVISIONER_ARCHIVE=$$(hack/image/build.sh 2>/dev/null) && export PROVISIONER_ARCHIVE &&

.PHONY: image-archive
image-archive: ## Build the container image without docker, into the cache folder
	@$(BUILD_ARCHIVE)
	@tail -n 1 "$${XDG_CACHE_HOME:-$$HOME/.cache}/rbd-provisioner/log/image.log"

.PHONY: kubernetes
kubernetes: ## Build the Kubernetes servers that tests run, once per K8S_VERSION
	@hack/step.sh kubernetes-$(K8S_VERSION) 'Kubernetes $(K8S_VERSION): building its servers (ten minutes the first time)' \
		hack/kubernetes/build.sh $(K8S_VERSION)

.PHONY: node
node: kubernetes ## Build the node of the tests with a node, once per K8S_VERSION
	@hack/step.sh node-$(K8S_VERSION) 'Node: building kubelet and a Debian for it (five minutes the first time)' \
		hack/node/build.sh $(K8S_VERSION)

.PHONY: test
test: deps-node test-servers test-nodes ## Run all tests, with all that they need; as root

.PHONY: test-servers
test-servers: test-code test-processes ## Run all tests but those with a node

.PHONY: test-code
test-code: build kubernetes test-tools ## Run the tests that call our code, with the race detector
	$(GOTESTSUM) -- -race $(TESTFLAGS) $(LONGESTTESTS) $$(go list -tags '$(TAGS)' ./... | grep -v -E '$(PROCESSTESTS)')

.PHONY: test-processes
test-processes: build kubernetes test-tools ## Run test-e2e and test-faults side by side
	$(GOTESTSUM) -- $(TESTFLAGS) ./test/e2e/... ./test/faults/

.PHONY: test-unit
test-unit: ## Run the tests that need neither cgo nor servers
	CGO_ENABLED=0 go test $$(CGO_ENABLED=0 go list ./... | grep -v -E '/test/(bench|cluster|demo|e2e|faults|image|node)')

.PHONY: test-ceph
test-ceph: ceph-tag test-tools ## Run the conformance suite on the real Ceph
	$(GOTESTSUM) -- -race $(TESTFLAGS) ./provisioner/goceph/...

.PHONY: test-e2e
test-e2e: build kubernetes test-tools ## Run the end-to-end tests on Kubernetes K8S_VERSION
	$(GOTESTSUM) -- $(TESTFLAGS) ./test/e2e/...

.PHONY: test-faults
test-faults: build kubernetes test-tools ## Run the tests that kill and halt servers, in their short form
	$(GOTESTSUM) -- $(TESTFLAGS) ./test/faults/

# With leases and watchers as users have them, not hurried, and with each file system.
# FAULTS_SEED repeats a run's random numbers.
.PHONY: soak
soak: export FAULTS_CLAIMS ?= 200
soak: export FAULTS_KILLS ?= 20
soak: export FAULTS_LEASE ?= default
soak: export FAULTS_FIGURES = $(or $(RESULTS),$(CURDIR)/bin)/soak.txt
soak: export NODE_FILE_SYSTEMS ?= all
soak: deps-node build kubernetes test-tools ## Run test-faults and test-node in their long form, and print what they did; as root
	rm -f '$(FAULTS_FIGURES)'
	status=0; \
	$(GOTESTSUM) -- $(TESTFLAGS) -timeout 90m ./test/faults/ || status=$$?; \
	$(MAKE) test-nodes || status=$$?; \
	cat '$(FAULTS_FIGURES)'; exit $$status

# The node computes more than it waits, so it runs alone and does little at a
# time. This format shows the logs of the rig, too, which a failure here rarely
# does without.
.PHONY: test-node
test-node: FORMAT = standard-verbose
test-node: ceph node test-tools ## Run the tests in which Pods use volumes of K8S_VERSION; as root, after deps-node
	@$(BUILD_ARCHIVE)
	$(WITH_ARCHIVE) $(GOTESTSUM) -- $(TESTFLAGS) -parallel 4 $(if $(IN_TREE),./test/node/intree/,./test/node/)

.PHONY: test-nodes
test-nodes: ## Run test-node with Kubernetes 1.36.3 (node plugin) and 1.30.14 (in-tree); as root, after deps-node
	$(MAKE) test-node K8S_VERSION=1.36.3
	$(MAKE) test-node K8S_VERSION=1.30.14

# The image of a variant: with the Ceph client of another Debian, which alone can use
# the keys of these servers.
.PHONY: test-image
test-image: export BUILD_IMAGE = golang:1.26-forky
test-image: export RUN_IMAGE = debian:forky-slim
test-image: export CEPH_KEYS = aes256k
test-image: CEPH_VERSION = 20
test-image: ceph kubernetes test-tools ## Run the provisioner from an image with the client of Ceph 20; as root, after deps-node
	@hack/step.sh image-variant 'Container image: building one with another client (five minutes the first time)' hack/image/build.sh
	$(WITH_ARCHIVE) $(GOTESTSUM) -- $(TESTFLAGS) ./test/image/

.PHONY: bench-ceph
bench-ceph: ceph-tag modules ## Measure single calls to a real Ceph
	$(IN) go test -run '^$$' -bench . -benchtime 100x -tags '$(TAGS)' ./provisioner/goceph/

# ROUNDS, BURSTS, VOLUMES and CONTENDERS change what is measured, BENCHFLAGS
# anything (see go run ./test/bench -help); DOCS=1 puts table and plot into docs/.
.PHONY: bench
bench: build kubernetes ## Measure speed and cost beside ceiling and baseline, 30 minutes
	$(IN) go run ./test/bench -out '$(or $(RESULTS),bin/bench)' $(if $(ROUNDS),-rounds '$(ROUNDS)') $(if $(BURSTS),-bursts '$(BURSTS)') \
		$(if $(VOLUMES),-volumes '$(VOLUMES)') $(if $(CONTENDERS),-contenders '$(CONTENDERS)') \
		$(if $(filter-out 0,$(DOCS)),-docs) $(BENCHFLAGS)

.PHONY: deploy-check
deploy-check: build kubernetes ## Apply rbac/, deploy/ and examples/ to a real API server, as a dry run
	$(IN) go test $(TESTFLAGS) -run TestDeployCheck -v ./test/e2e/

# In-tree volumes need no image: there the provisioner runs beside the node.
demo: DEMO_IMAGE = $(if $(WITH_NODE),$(if $(IN_TREE),,yes))
.PHONY: demo
demo: $(if $(WITH_NODE),deps-node,$(if $(CEPH_VERSION),deps-ceph,deps)) build $(if $(WITH_NODE),node,kubernetes) ## Start Ceph, Kubernetes and the provisioner here, and make a volume (NODE=1: and a Pod)
	$(if $(DEMO_IMAGE),@$(BUILD_ARCHIVE))
	@$(if $(DEMO_IMAGE),$(WITH_ARCHIVE)) $(IN) go run ./test/demo up $(if $(WITH_NODE),-node)

.PHONY: demo-down
demo-down: ## End what demo started
	@go run ./test/demo down

.PHONY: lint
lint: ## Check style, imports, scripts and modules
	hack/lint.sh

.PHONY: clean
clean: ## Remove what was built here; the cache folder stays
	rm -rf bin
