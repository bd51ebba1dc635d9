package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/bundle"
	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/sdk/admin"
)

// newBundleKey is a key pair of a publisher, in PEM form.
func newBundleKey(t *testing.T) (private, public []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})
}

// publisher is a bundle server with the key that signs what it publishes.
type publisher struct {
	*httptest.Server

	signer *bundle.Signer
	keys   string
	mu     sync.Mutex
	// archive is nil while nothing is published: the server is away then.
	archive []byte
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	private, public := newBundleKey(t)
	signer, err := bundle.NewSigner(private, "security", bundle.ES256)
	if err != nil {
		t.Fatal(err)
	}
	p := &publisher{signer: signer, keys: "security:" + string(public)}
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.Close)
	return p
}

func (p *publisher) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	archive := p.archive
	p.mu.Unlock()
	if user, password, _ := r.BasicAuth(); archive == nil || user != "reader" || password != "of-bundles" {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	sum := sha256.Sum256(archive)
	tag := `"` + hex.EncodeToString(sum[:]) + `"`
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(archive)
}

// publish puts a policy on the server and returns its revision; nil files take it down.
func (p *publisher) publish(t *testing.T, version int64, files admin.PolicyFiles, accept ...string) (revision string) {
	t.Helper()
	var archive []byte
	if files != nil {
		source, err := policy.SourceOf(files)
		if err != nil {
			t.Fatal(err)
		}
		if archive, err = (bundle.Contents{Source: source, Version: version, AcceptRemoved: accept}).Pack(p.signer); err != nil {
			t.Fatal(err)
		}
		revision = source.Revision()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.archive = archive
	return revision
}

// configure has a service take its policy from the publisher.
func (p *publisher) configure(t *testing.T) func(map[string]string) {
	t.Helper()
	state := t.TempDir()
	return func(env map[string]string) {
		env["KEYSTILE_POLICY_BUNDLE_URL"] = strings.Replace(p.URL, "http://", "http://reader:of-bundles@", 1) + "/policies/bundle.tar.gz"
		env["KEYSTILE_POLICY_BUNDLE_KEY"] = p.keys
		env["KEYSTILE_STATE_DIR"] = state
	}
}

// A bundle that is published is in force on every replica, and a bad one on none; no answer is
// of another policy than it says; and replicas start without the server.
func TestE2E_APublishedBundleIsInForceOnEveryReplicaOrRefused(t *testing.T) {
	p := newPublisher(t)
	open := p.publish(t, 1, policyFiles(t, nil))
	m := startManaged(t, p.configure(t))
	// Each replica keeps the last good bundle for itself.
	start := func(cfg Config) (s *service, stop func()) {
		t.Helper()
		s, err := startService(context.WithoutCancel(t.Context()), cfg, newLogger(cfg, m.log))
		if err != nil {
			t.Fatal(err)
		}
		stop = sync.OnceFunc(func() {
			if err := s.close(); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(stop)
		return s, stop
	}
	second, third := m.cfg, m.cfg
	second.StateDir, third.StateDir = t.TempDir(), t.TempDir()
	all := []*service{m.service}
	s, _ := start(second)
	all = append(all, s)
	s, stopThird := start(third)
	all = append(all, s)
	ctx, client := t.Context(), testClient()
	now := must(m.client.Policy(ctx))
	if now.Origin != "bundle" || now.Source != "bundle" || *now.Revision != open || now.Bundle == nil || *now.Bundle.Version != 1 || now.Bundle.Error != nil {
		t.Fatalf("%+v, %+v", now, now.Bundle)
	}
	load := newPolicyLoad(t, all, m.cfg.KeyFormat)
	began := time.Now()
	closed := p.publish(t, 2, policyFiles(t, closedFridays()))
	decide := func(revision string) time.Duration {
		t.Helper()
		for _, s := range all {
			awaitPolicy(t, "it decides on every replica", func() bool { return s.policy.engine.Revision() == revision })
		}
		return time.Since(began)
	}
	t.Logf("a bundle that was published decides on 3 replicas, which try it on one machine, after %.2f s", decide(closed).Seconds())

	// A bad one: its own test fails.
	bad := closedFridays()
	bad["keystile/rules/closed/closed_test.rego"] += "\ntest_wrong if count(closed.deny) == 7\n"
	p.publish(t, 3, policyFiles(t, bad))
	for _, s := range all {
		awaitPolicy(t, "a bad one is refused", func() bool { return s.policy.keeper.State().Refused != nil })
	}
	refused := must(m.client.Policy(ctx))
	if *refused.Revision != closed || refused.Refused.Origin != "bundle" || *refused.Refused.Problems[0].Test != "data.keystile.rules.closed_test.test_wrong" {
		t.Errorf("%+v, %+v", refused, refused.Refused)
	}
	// An old one, signed as ever.
	p.publish(t, 1, policyFiles(t, nil))
	for _, s := range all {
		awaitPolicy(t, "an old one is refused", func() bool {
			r := s.policy.keeper.State().Refused
			return r != nil && strings.Contains(r.Problems[0].Message, "version 1 is lower than 2")
		})
		if s.policy.engine.Revision() != closed {
			t.Errorf("it decides by %s", s.policy.engine.Revision())
		}
	}
	load.end(map[string]string{open: "allowed", closed: "closed"})

	// The server is away: everyone can see it, nobody is denied, and a replica starts without.
	p.publish(t, 0, nil)
	awaitPolicy(t, "the outage is told", func() bool { b := must(m.client.Policy(ctx)).Bundle; return b.Error != nil && b.FailingSince != nil })
	if _, page := get(t, client, m.opsURL+"/metrics"); !strings.Contains(page, "keystile_policy_bundle_failing 1") ||
		!strings.Contains(page, "keystile_policy_bundle_version 2") || !strings.Contains(page, "keystile_policy_refused 1") {
		t.Errorf("no metric tells:\n%s", page)
	}
	_, page := get(t, client, m.opsURL+"/readyz")
	if !strings.Contains(page, "502 Bad Gateway") || !strings.Contains(page, "version 1 is lower than 2") {
		t.Errorf("the ops listener does not tell: %s", page)
	}
	code, out, talk := runProgram(t, map[string]string{"KEYSTILE_URL": m.adminURL, "KEYSTILE_ADMIN_TOKEN": m.token.Reveal()}, "policy", "show")
	if code != 0 || !strings.Contains(out, "502 Bad Gateway") || !strings.Contains(out, p.URL+"/policies/bundle.tar.gz") || !strings.Contains(out, "lower than 2") {
		t.Errorf("policy show: %d: %s%s", code, out, talk)
	}
	stopThird()
	again, _ := start(third)
	probe := addTenant(t, again.store, m.cfg.KeyFormat)
	if a, _ := postCheck(t, client, again.url, probe.token, probe.key.Reveal()); a.PolicyRevision != closed || a.Code != "policy_denied" {
		t.Errorf("after a start without the server: %s by %s", a.Code, a.PolicyRevision)
	}
	p.publish(t, 1, policyFiles(t, nil))
	awaitPolicy(t, "the old one is refused after the restart as well", func() bool { return again.policy.keeper.State().Refused != nil })

	// Back to the first policy, in a bundle of its own that names the test which goes.
	p.publish(t, 4, policyFiles(t, nil), "data.keystile.rules.closed_test.*")
	all[2] = again
	decide(open)
	awaitPolicy(t, "it is told", func() bool {
		now := must(m.client.Policy(ctx))
		return *now.Bundle.Version == 4 && now.Refused == nil && now.Bundle.Error == nil
	})
	if said := m.log.String() + page; strings.Contains(said, "of-bundles") {
		t.Error("the bundle server's password is told")
	}
}

// A service whose bundle server is away at its first start decides nothing by another policy:
// it waits, and says why.
func TestE2E_WithoutAnyBundleNothingIsInForce(t *testing.T) {
	p := newPublisher(t)
	m := startManaged(t, p.configure(t))
	client := testClient()
	made := addTenant(t, m.store, m.cfg.KeyFormat)
	if code, _ := get(t, client, m.url+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("it says that it is ready: %d", code)
	}
	if a, _ := postCheck(t, client, m.url, made.token, made.key.Reveal()); a.Allow || a.Code != "unavailable" {
		t.Errorf("%+v", a)
	}
	if _, page := get(t, client, m.opsURL+"/readyz"); !strings.Contains(page, "502 Bad Gateway") {
		t.Errorf("the ops listener does not tell: %s", page)
	}
	revision := p.publish(t, 1, policyFiles(t, nil))
	awaitPolicy(t, "it is ready", func() bool { code, _ := get(t, client, m.url+"/readyz"); return code == http.StatusOK })
	if a, _ := postCheck(t, client, m.url, made.token, made.key.Reveal()); !a.Allow || a.PolicyRevision != revision {
		t.Errorf("%+v", a)
	}
}

func TestDoctor_LooksAtTheBundleServerAndAtWhatIsKept(t *testing.T) {
	env, p := testEnvironment(t), newPublisher(t)
	p.configure(t)(env)
	doctor := func(code int, says string) {
		t.Helper()
		if got, out, talk := runProgram(t, env, "doctor"); got != code || !strings.Contains(out, says) || strings.Contains(out+talk, "of-bundles") {
			t.Errorf("%d: %s%s; want %d, %q", got, out, talk, code, says)
		}
	}
	doctor(exitDependency, "502 Bad Gateway ("+p.URL+"/policies/bundle.tar.gz), and nothing is kept here")
	revision := p.publish(t, 1, policyFiles(t, nil))
	doctor(0, "version 1 of the bundle server, revision "+revision+", signed by security")
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	p.publish(t, 0, nil)
	doctor(0, "version 1, revision "+revision+", was kept here")
	p.signer = newPublisher(t).signer // who has the server, and not the key
	p.publish(t, 2, policyFiles(t, nil))
	doctor(exitInvalid, "does not hold for the key")
}

// stockOPA runs the mounted opa in a process of its own: it writes to that.
func stockOPA(t *testing.T, args ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, append([]string{"opa"}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What `policy bundle build` writes, services and the stock opa take; what was changed
// afterwards, neither.
func TestProgram_ABundleIsBuiltVerifiedAndReadByStockOPA(t *testing.T) {
	dir := t.TempDir()
	private, public := newBundleKey(t)
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, publicKey := file("key.pem", private), file("public.pem", public)
	for name, text := range policyFiles(t, nil) {
		file("policies/"+name, []byte(text))
	}
	manifest, err := fs.ReadFile(policies.FS, ".manifest")
	if err != nil {
		t.Fatal(err)
	}
	file("policies/.manifest", manifest)
	file("policies/.accept-removed-tests", []byte("data.x_test.test_y\n"))
	from, to := filepath.Join(dir, "policies"), filepath.Join(dir, "bundle.tar.gz")

	code, _, talk := runProgram(t, nil, "policy", "bundle", "build", from, "--version", "7", "--sign", "--key", key, "--key-id", "security", "--algorithm", "ES256", "-o", to)
	if code != 0 || !strings.Contains(talk, "version 7, signed by security, revision sha256:") {
		t.Fatalf("%d: %s", code, talk)
	}
	code, out, talk := runProgram(t, nil, "policy", "bundle", "verify", to, "--key", publicKey, "--key-id", "security", "-o", "json")
	var shown shownBundle
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code != 0 {
		t.Fatalf("%d: %s %s", code, out, talk)
	}
	if shown.Version != 7 || shown.KeyID != "security" || len(shown.AcceptRemoved) != 1 {
		t.Errorf("%+v", shown)
	}
	env := map[string]string{"KEYSTILE_POLICY_BUNDLE_KEY": "security:" + string(public)}
	if code, out, talk := runProgram(t, env, "policy", "bundle", "verify", to); code != 0 || !strings.Contains(out, shown.Revision) {
		t.Errorf("%d: %s %s", code, out, talk)
	}
	// The same policy in a directory has the same revision.
	if out, err := stockOPA(t, "inspect", "-f", "json", to); err != nil || !strings.Contains(out, shown.Revision) || !strings.Contains(out, "data.keystile.check") {
		t.Errorf("opa inspect: %v: %.400s", err, out)
	}
	if out, err := stockOPA(t, "eval", "--bundle", to, "-f", "raw", "count(data.keystile.catalog.scopes)"); err != nil || strings.TrimSpace(out) != "4" {
		t.Errorf("opa eval: %v: %s", err, out)
	}
	verified := func(key string) (string, error) {
		return stockOPA(t, "build", "--bundle", to, "--verification-key", key, "--verification-key-id", "security", "--signing-alg", "ES256", "-o", filepath.Join(dir, "built.tar.gz"))
	}
	if out, err := verified(publicKey); err != nil {
		t.Errorf("opa build: %v: %s", err, out)
	}

	unsigned := filepath.Join(dir, "unsigned.tar.gz")
	if code, _, talk := runProgram(t, nil, "policy", "bundle", "build", from, "--version", "8", "-o", unsigned); code != 0 || !strings.Contains(talk, "not signed") {
		t.Errorf("%d: %s", code, talk)
	}
	if code, _, talk := runProgram(t, env, "policy", "bundle", "verify", unsigned); code != exitInvalid || !strings.Contains(talk, "not signed") {
		t.Errorf("%d: %s", code, talk)
	}
	// Signed elsewhere, by the stock opa: it names the key in a claim.
	claims, signed := file("claims.json", []byte(`{"keyid": "security"}`)), filepath.Join(dir, "signed.tar.gz")
	if out, err := stockOPA(t, "sign", "--bundle", unsigned, "--signing-key", key, "--signing-alg", "ES256", "--claims-file", claims, "-o", dir); err != nil {
		t.Errorf("opa sign: %v: %s", err, out)
	}
	pack := exec.Command("sh", "-ec", `mkdir "$1/all"; tar -xzf "$2" -C "$1/all"; mv "$1/.signatures.json" "$1/all"; tar -czf "$3" -C "$1/all" .`, "sh", dir, unsigned, signed)
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if code, out, talk := runProgram(t, env, "policy", "bundle", "verify", signed); code != 0 || !strings.Contains(out, "security") {
		t.Errorf("signed by opa sign: %d: %s %s", code, out, talk)
	}
	_, other := newBundleKey(t)
	otherKey := file("other.pem", other)
	if out, err := verified(otherKey); err == nil {
		t.Errorf("opa build takes another key, so it verifies nothing: %s", out)
	}
	if code, _, talk := runProgram(t, nil, "policy", "bundle", "verify", to, "--key", otherKey, "--key-id", "security"); code != exitInvalid || !strings.Contains(talk, "does not hold") {
		t.Errorf("%d: %s", code, talk)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no version":            {[]string{"build", from}, exitUsage, "--version"},
		"a key and no --sign":   {[]string{"build", from, "--version", "1", "--key", key, "--key-id", "x"}, exitUsage, "--sign"},
		"--sign and no id":      {[]string{"build", from, "--version", "1", "--sign", "--key", key}, exitUsage, "--key-id"},
		"the public key":        {[]string{"build", from, "--version", "1", "--sign", "--key", publicKey, "--key-id", "x"}, exitInvalid, "private key"},
		"another algorithm":     {[]string{"build", from, "--version", "1", "--sign", "--key", key, "--key-id", "x", "--algorithm", "RS256"}, exitInvalid, "ES256"},
		"no policy":             {[]string{"build", t.TempDir(), "--version", "1"}, exitInvalid, ".rego"},
		"an id and no key":      {[]string{"verify", to, "--key-id", "x"}, exitUsage, "--key"},
		"no key":                {[]string{"verify", to}, exitInvalid, "KEYSTILE_POLICY_BUNDLE_KEY"},
		"the private key there": {[]string{"verify", to, "--key", key, "--key-id", "x"}, exitInvalid, "private key"},
	} {
		code, _, talk := runProgram(t, map[string]string{"KEYSTILE_POLICY_BUNDLE_KEY": ""}, append([]string{"policy", "bundle"}, c.args...)...)
		if code != c.code || !strings.Contains(talk, c.says) || strings.Contains(talk, "PRIVATE KEY---") {
			t.Errorf("%s: %d: %s", name, code, talk)
		}
	}
}
