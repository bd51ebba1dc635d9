package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
)

// checkCase is one case of testdata/checks; its README says what the fields mean.
type checkCase struct {
	Name         string
	Organization struct {
		Suspended  bool
		Plan       string
		ExternalID string `yaml:"external_id"`
	}
	Key struct {
		Environment  string
		Scopes       *[]string
		Revoked      bool
		Disabled     bool
		ExpiresIn    string   `yaml:"expires_in"`
		AllowedCIDRs []string `yaml:"allowed_cidrs"`
		RateLimit    *struct {
			Rate   int
			Period int `yaml:"period_seconds"`
			Burst  int
		} `yaml:"rate_limit"`
		Metadata map[string]any
	}
	Secret struct {
		Revoked   bool
		ExpiresIn string `yaml:"expires_in"`
	}
	Caller struct {
		Environments *[]string
		Permissions  *[]string
		Disabled     bool
		Revoked      bool
		Token        string
	}
	Present string
	Check   *map[string]any
	Body    *string
	Request struct {
		Method, Path string
		Headers      map[string]string
	}
	Before int
	Want   wanted
}

type wanted struct {
	HTTP      int
	Code      string
	Status    int
	Reasons   *[]string
	Required  *[]string
	Missing   *[]string
	Route     yaml.Node
	Warnings  *[]string
	Remaining yaml.Node
	Mode      string
	Headers   map[string]*string
	Response  map[string]*string
	Problem   map[string]any
	Pointers  *[]string
}

// answer is a decision or a problem, as it came.
type answer struct {
	Allow     bool
	Code      string
	Status    int
	Required  []string `json:"required_scopes"`
	Missing   []string `json:"missing_scopes"`
	Route     *string
	Reasons   []struct{ Code, Message string }
	Warnings  []struct{ Code, Message string }
	RateLimit *struct {
		Remaining int
		Mode      string
	} `json:"rate_limit"`
	Headers  map[string]string
	Problem  map[string]any
	Degraded []string
	// PolicyRevision is the policy that decided.
	PolicyRevision string `json:"policy_revision"`
	DecisionID     string `json:"decision_id"`

	Errors []struct{ Pointer, Message string }
}

// TestE2E_CheckCases runs every case of testdata/checks through HTTP, on a real
// Postgres and a real Redis.
func TestE2E_CheckCases(t *testing.T) {
	files, err := filepath.Glob("testdata/checks/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	s := startTestService(t)
	total := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []checkCase
		decoder := yaml.NewDecoder(bytes.NewReader(raw))
		decoder.KnownFields(true)
		if err := decoder.Decode(&cases); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, c := range cases {
			total++
			t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml")+"/"+c.Name, func(t *testing.T) { c.run(t, s) })
		}
	}
	if total < 80 {
		t.Errorf("%d cases; at least 80 are promised", total)
	}
}

// caseSecrets are the texts that a case's request needs.
type caseSecrets struct{ key, token authz.Secret }

func (c *checkCase) run(t *testing.T, s *testService) {
	t.Helper()
	secrets := c.store(t, s)
	for range c.Before {
		c.ask(t, s, secrets)
	}
	response, body := c.ask(t, s, secrets)
	if strings.Contains(body, secrets.key.Reveal()) || strings.Contains(body, secrets.token.Reveal()) {
		t.Error("the answer repeats a secret")
	}
	var a answer
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatalf("HTTP %d, not JSON: %s", response.StatusCode, body)
	}
	if t.Failed() || !c.Want.compare(t, response, &a) {
		t.Logf("HTTP %d %v\n%s", response.StatusCode, response.Header, body)
	}
}

func in(t *testing.T, text string) time.Time {
	t.Helper()
	if text == "" {
		return time.Time{}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Now().Add(d)
}

// store writes what the case needs, as the management API would.
func (c *checkCase) store(t *testing.T, s *testService) caseSecrets {
	t.Helper()
	now := time.Now()
	organization := &authz.Organization{
		ID: authz.NewOrganizationID(now), Name: "Acme", Plan: "standard", Suspended: c.Organization.Suspended,
	}
	if c.Organization.Plan != "" {
		organization.Plan = c.Organization.Plan
	}
	organization.ExternalID = c.Organization.ExternalID
	key := &authz.Key{
		ID: authz.NewKeyID(now), Organization: organization, Name: "case", Environment: authz.EnvironmentLive,
		Scopes:   []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"},
		Disabled: c.Key.Disabled, ExpiresAt: in(t, c.Key.ExpiresIn),
	}
	if c.Key.Environment != "" {
		key.Environment = authz.Environment(c.Key.Environment)
	}
	if c.Key.Scopes != nil {
		key.Scopes = nil
		for _, scope := range *c.Key.Scopes {
			key.Scopes = append(key.Scopes, authz.Scope(scope))
		}
	}
	if c.Key.Revoked {
		key.RevokedAt = now
	}
	for _, text := range c.Key.AllowedCIDRs {
		key.AllowedCIDRs = append(key.AllowedCIDRs, netip.MustParsePrefix(text))
	}
	if r := c.Key.RateLimit; r != nil {
		key.RateLimit = &authz.Rate{Rate: r.Rate, Period: time.Duration(r.Period) * time.Second, Burst: r.Burst}
	}
	if c.Key.Metadata != nil {
		raw, err := json.Marshal(c.Key.Metadata)
		if err != nil {
			t.Fatal(err)
		}
		key.Metadata = authz.Metadata(raw)
	}
	out := caseSecrets{key: s.format.Generate(key.Environment), token: authz.CallerTokens().Generate()}
	secret := &authz.KeySecret{ID: authz.NewSecretID(now), Hint: s.format.Hint(out.key), ExpiresAt: in(t, c.Secret.ExpiresIn)}
	if c.Secret.Revoked {
		secret.RevokedAt = now
	}
	caller := &authz.Caller{
		ID: authz.NewCallerID(now), Name: authz.NewCallerID(now).String(), Disabled: c.Caller.Disabled,
		Environments: []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest},
		Permissions:  []authz.Permission{authz.PermissionCheck},
	}
	if c.Caller.Environments != nil {
		caller.Environments = nil
		for _, e := range *c.Caller.Environments {
			caller.Environments = append(caller.Environments, authz.Environment(e))
		}
	}
	if c.Caller.Permissions != nil {
		caller.Permissions = nil
		for _, p := range *c.Caller.Permissions {
			caller.Permissions = append(caller.Permissions, authz.Permission(p))
		}
	}
	if c.Caller.Revoked {
		caller.RevokedAt = now
	}
	_, err := s.service.store.Change(t.Context(), func(ctx context.Context, ch *store.Change) error {
		return errors.Join(ch.AddOrganization(ctx, organization), ch.AddKey(ctx, key, "test"),
			ch.AddKeySecret(ctx, key.ID, secret, out.key), ch.AddCaller(ctx, caller, out.token))
	})
	if err == nil {
		err = s.service.store.Synchronize(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *checkCase) ask(t *testing.T, s *testService, secrets caseSecrets) (*http.Response, string) {
	t.Helper()
	method, path := http.MethodPost, "/v1/check"
	if c.Request.Method != "" {
		method = c.Request.Method
	}
	if c.Request.Path != "" {
		path = c.Request.Path
	}
	request, err := http.NewRequestWithContext(t.Context(), method, s.service.url+path, strings.NewReader(c.body(t, s, secrets)))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	c.authorize(t, request, secrets)
	for name, value := range c.Request.Headers {
		request.Header.Set(name, value)
	}
	response, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(raw)
}

func (c *checkCase) authorize(t *testing.T, r *http.Request, secrets caseSecrets) {
	t.Helper()
	set := func(token string) { r.Header.Add("Authorization", "Bearer "+token) }
	switch c.Caller.Token {
	case "":
		set(secrets.token.Reveal())
	case "none":
	case "key":
		set(secrets.key.Reveal())
	case "admin":
		set(authz.AdminTokens().Generate().Reveal())
	case "malformed":
		set(secrets.token.Reveal() + "x")
	case "unknown":
		set(authz.CallerTokens().Generate().Reveal())
	case "two":
		set(secrets.token.Reveal())
		set(secrets.token.Reveal())
	default:
		t.Fatalf("caller.token %q is none of the README's", c.Caller.Token)
	}
}

func (c *checkCase) body(t *testing.T, s *testService, secrets caseSecrets) string {
	t.Helper()
	hash := fmt.Sprintf("%x", secrets.key.Hash())
	if c.Body != nil {
		return strings.NewReplacer("{KEY}", secrets.key.Reveal(), "{SHA256}", hash).Replace(*c.Body)
	}
	fields := map[string]any{"method": "GET", "path": "/api/v1/tickets"}
	if c.Check != nil {
		fields = *c.Check
	}
	switch c.Present {
	case "", "secret":
		fields["key"] = secrets.key.Reveal()
	case "sha256":
		fields["key_sha256"] = hash
	case "both":
		fields["key"], fields["key_sha256"] = secrets.key.Reveal(), hash
	case "none":
		fields["key"] = ""
	case "absent":
	case "malformed":
		fields["key"] = secrets.key.Reveal()[:20]
	case "unknown":
		fields["key"] = s.format.Generate(authz.EnvironmentLive).Reveal()
	case "foreign_prefix":
		fields["key"] = "pk_" + secrets.key.Reveal()[3:]
	default:
		t.Fatalf("present %q is none of the README's", c.Present)
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// compare reports every difference and tells whether there was none.
func (w *wanted) compare(t *testing.T, r *http.Response, a *answer) bool {
	t.Helper()
	same := true
	differ := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			same = false
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	status := w.HTTP
	if status == 0 {
		status = http.StatusOK
	}
	differ("HTTP status", r.StatusCode, status)
	if w.Code != "" {
		differ("code", a.Code, w.Code)
	}
	if w.Status != 0 {
		differ("status", a.Status, w.Status)
	}
	if isDecision := a.Headers != nil; isDecision {
		differ("allow", a.Allow, w.Code == "allowed" || w.Code == "" && a.Allow)
	}
	codes := func(list []struct{ Code, Message string }) []string {
		out := []string{}
		for _, e := range list {
			out = append(out, e.Code)
			if e.Message == "" {
				t.Errorf("%s has no message", e.Code)
			}
		}
		return out
	}
	compareList(differ, "reasons", codes(a.Reasons), w.Reasons)
	compareList(differ, "warnings", codes(a.Warnings), w.Warnings)
	compareList(differ, "required scopes", a.Required, w.Required)
	compareList(differ, "missing scopes", a.Missing, w.Missing)
	w.compareScalars(t, differ, a)
	for name, want := range w.Headers {
		got, ok := a.Headers[name]
		compareHeader(differ, "decision header "+name, got, ok, want)
	}
	for name, want := range w.Response {
		got := r.Header.Get(name)
		compareHeader(differ, "response header "+name, got, len(r.Header.Values(name)) > 0, want)
	}
	for name, want := range w.Problem {
		got := a.Problem[name]
		if f, ok := got.(float64); ok {
			got = int(f)
		}
		differ("problem "+name, got, want)
	}
	if w.Pointers != nil {
		got := []string{}
		for _, e := range a.Errors {
			got = append(got, e.Pointer)
		}
		slices.Sort(got)
		differ("pointers", got, *w.Pointers)
	}
	return same
}

func (w *wanted) compareScalars(t *testing.T, differ func(string, any, any), a *answer) {
	t.Helper()
	switch {
	case w.Route.Kind == 0:
	case w.Route.Tag == "!!null":
		differ("route is absent", a.Route == nil, true)
	case a.Route == nil:
		differ("route", "null", w.Route.Value)
	default:
		differ("route", *a.Route, w.Route.Value)
	}
	switch {
	case w.Remaining.Kind == 0:
	case w.Remaining.Tag == "!!null":
		differ("rate limit is absent", a.RateLimit == nil, true)
	case a.RateLimit == nil:
		differ("remaining", "null", w.Remaining.Value)
	default:
		differ("remaining", fmt.Sprint(a.RateLimit.Remaining), w.Remaining.Value)
	}
	if w.Mode != "" && a.RateLimit != nil {
		differ("mode", a.RateLimit.Mode, w.Mode)
	}
}

func compareList(differ func(string, any, any), what string, got []string, want *[]string) {
	if want == nil {
		return
	}
	if got == nil {
		got = []string{}
	}
	differ(what, got, append([]string{}, *want...))
}

func compareHeader(differ func(string, any, any), what, got string, present bool, want *string) {
	if want == nil {
		differ(what+" is present", present, false)
		return
	}
	differ(what, got, *want)
}
