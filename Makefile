SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# A container may have no HOME; go and the tools need one for their caches.
ifeq ($(HOME),)
export HOME := $(shell getent passwd "$$(id -u)" | cut -d: -f6)
endif

step := @.ci/step
race := .ci/race
# A work tree that git refuses to read (another owner, no git) is built without its commit.
vcs := $(shell git status --porcelain >/dev/null 2>&1 && echo auto || echo false)
FUZZTIME ?= 60s

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## start Keystile with demonstration data and both example apps; Ctrl-C stops all
	@exec bin/keystile dev --examples bin

.PHONY: build
build: install-run ## build bin/keystile and the example apps
	@mkdir -p bin
	$(step) build go build -buildvcs=$(vcs) -o bin/ . ./sdk/examples/tickets ./sdk/examples/customers

.PHONY: test
test: test-go test-policies test-faults verify lint ## everything that a change must pass

.PHONY: test-go
test-go: install-test ## test the packages and the whole program, mostly with the race detector, on real servers
	$(step) test-go .ci/test-go

.PHONY: test-e2e
test-e2e: install-test ## test the whole program alone, over HTTP and from its command line
	$(step) test-e2e $(race) .

.PHONY: test-faults
test-faults: install-test ## try every promise under faults in its quick form: codes and counts, no times
	$(step) test-faults go test -timeout 10m -parallel 4 ./server/faults

.PHONY: test-policies
test-policies: ## check, format, test (coverage 100) and lint the policies
	$(step) test-policies .ci/test-policies

.PHONY: lint
lint: ## lint the Go code and its format
	$(step) lint .ci/lint

.PHONY: generate
generate: ## generate the management API's server and client from server/api/openapi.yaml
	@.ci/generate

.PHONY: verify
verify: ## check that what is generated is as it would be generated now, and that mutants can be made
	$(step) verify .ci/verify

.PHONY: format
format: ## write Go and Rego in their one format
	@"$$(.ci/tool golangci-lint)" fmt --config .ci/golangci.yml
	@"$$(.ci/tool opa)" fmt --write policies .ci/conventions .regal/rules

.PHONY: bench
bench: install-run ## measure a full check against a bare Gin handler
	$(step) bench go test -run '^$$' -bench . -benchtime 1x -timeout 30m .

.PHONY: faults
faults: install-test ## break real servers and measure every promise: ROWS=5,7 for some, MARKDOWN=FILE for a table
	@mkdir -p bin
	@go test -c -o bin/faults.test ./server/faults
	@cd server/faults && ../../bin/faults.test -test.run '^TestFaults$$' -test.timeout 40m \
		-faults.full -faults.rows='$(ROWS)' -faults.markdown='$(abspath $(MARKDOWN))' -faults.overlay='$(abspath $(OVERLAY))'

.PHONY: fuzz
fuzz: ## fuzz every parser for FUZZTIME (60s)
	$(step) fuzz .ci/fuzz $(FUZZTIME)

.PHONY: mutants
mutants: install-test ## show that tests fail when what they guard is switched off; WORDS="store row" chooses
	$(step) mutants go run ./.ci/mutants $(WORDS)

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin

.PHONY: install-run install-test
install-run:
	@.ci/install postgres redis
install-test:
	@.ci/install postgres redis gcc git
