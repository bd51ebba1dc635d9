package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
)

// configCase is what configuration is read from in a test.
type configCase struct {
	flags   map[string]string
	environ []string
	file    string            // content of --config, or empty
	files   map[string]string // content of other files
	need    configNeed
}

func (c configCase) load() (Config, configValues, error) {
	in := configInput{flags: c.flags, environ: c.environ, readFile: func(name string) ([]byte, error) {
		if name == "keystile.yaml" {
			return []byte(c.file), nil
		}
		if content, ok := c.files[name]; ok {
			return []byte(content), nil
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}}
	if c.file != "" {
		in.file = "keystile.yaml"
	}
	values, err := in.merge()
	if err != nil {
		return Config{}, values, err
	}
	cfg, err := values.check(c.need)
	return cfg, values, err
}

// serving are the variables that a service cannot do without.
func serving(more ...string) []string {
	return append([]string{
		"KEYSTILE_DATABASE_URL=postgres://keystile:hunter2@127.0.0.1:5432/keystile",
		"KEYSTILE_REDIS_URL=redis://:hunter2@127.0.0.1:6379",
		"KEYSTILE_PEPPERS=" + authz.NewPepper("a"),
	}, more...)
}

func TestConfig_DefaultsAreTheContracts(t *testing.T) {
	c, _, err := configCase{environ: serving(), need: needsService}.load()
	if err != nil {
		t.Fatal(err)
	}
	got := []any{
		c.Listen, c.OpsListen, c.Pprof, c.InsecurePlaintext, c.OnLimiterOutage, c.StaleMax, c.Realm, c.Opaque401,
		len(c.TrustedProxies), c.PolicyDir, c.Deployment, c.KeyFormat == mustKeyFormat(t, "sk"), c.PublicURL == nil,
		c.DecisionLog, c.Decisions,
	}
	want := []any{
		"127.0.0.1:8080", "127.0.0.1:9090", false, false, authz.LimiterLocal, 5 * time.Minute, "api", false,
		0, "", "", true, true,
		"",
		store.DecisionsKept{For: 7 * 24 * time.Hour, Sample: 1000},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func mustKeyFormat(t *testing.T, prefix string) authz.KeyFormat {
	t.Helper()
	f, err := authz.NewKeyFormat(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestConfig_FlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	all := configCase{
		flags:   map[string]string{"realm": "flag"},
		environ: []string{"KEYSTILE_REALM=environment", "KEYSTILE_LISTEN=127.0.0.1:2"},
		file:    "realm: file\nlisten: 127.0.0.1:1\nops_listen: 127.0.0.1:0\npprof: true\n",
	}
	c, values, err := all.load()
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Realm, c.Listen, c.OpsListen, fmt.Sprint(c.Pprof), c.StaleMax.String()}
	if diff := cmp.Diff([]string{"flag", "127.0.0.1:2", "127.0.0.1:0", "true", "5m0s"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, want := range map[string]configSource{"realm": "flag", "listen": "environment", "ops_listen": "file", "stale_max": "default"} {
		if values.source[name] != want {
			t.Errorf("%s comes from %q, want %q", name, values.source[name], want)
		}
	}
}

func TestConfig_EmptyIsNotSet(t *testing.T) {
	c, _, err := configCase{
		environ: serving("KEYSTILE_LISTEN=", "KEYSTILE_GRPC_LISTEN=", "KEYSTILE_REALM=", "KEYSTILE_REALM_FILE="),
		file:    "realm: file\nstale_max: \"\"\n", need: needsService,
	}.load()
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:8080" || c.Realm != "file" || c.StaleMax != 5*time.Minute {
		t.Errorf("got %q %q %s; want what stands below the empty values", c.Listen, c.Realm, c.StaleMax)
	}
}

func TestConfig_ValuesComeFromFiles(t *testing.T) {
	pepper := authz.NewPepper("f")
	c, _, err := configCase{
		environ: []string{"KEYSTILE_PEPPERS_FILE=/run/peppers", "KEYSTILE_REALM_FILE=/run/realm"},
		file:    "stale_max_file: /run/stale\n",
		files:   map[string]string{"/run/peppers": pepper + "\n", "/run/realm": "two \r\n", "/run/stale": "90s"},
	}.load()
	if err != nil {
		t.Fatal(err)
	}
	if ids := c.Peppers.IDs(); len(ids) != 1 || ids[0] != "f" || c.Realm != "two " || c.StaleMax != 90*time.Second {
		t.Errorf("peppers %v, realm %q, stale_max %s", ids, c.Realm, c.StaleMax)
	}
}

func TestConfig_ParsesEveryForm(t *testing.T) {
	c, _, err := configCase{environ: serving(
		"KEYSTILE_LISTEN=[::1]:0", "KEYSTILE_OPS_LISTEN=localhost:0", "KEYSTILE_KEY_PREFIX=acme2",
		"KEYSTILE_ON_LIMITER_OUTAGE=closed", "KEYSTILE_STALE_MAX=24h", "KEYSTILE_PUBLIC_URL=https://auth.example/base",
		"KEYSTILE_TRUSTED_PROXIES=10.1.2.3/8, fd00::/8", "KEYSTILE_OPAQUE_401=true", "KEYSTILE_LOG_LEVEL=debug",
		"KEYSTILE_LOG_FORMAT=json", "KEYSTILE_DEPLOYMENT=dev", "KEYSTILE_POLICY_DIR=/etc/keystile",
		"KEYSTILE_TLS_CERT=/c", "KEYSTILE_TLS_KEY=/k", "KEYSTILE_TLS_CLIENT_CA=/a", "KEYSTILE_DECISION_LOG=https://siem.example/logs",
		"KEYSTILE_DECISION_LOG_TOKEN=t", "KEYSTILE_DECISIONS_KEPT_FOR=0", "KEYSTILE_DECISIONS_KEPT_SAMPLE=0", "KEYSTILE_DECISIONS_KEPT_NETWORK=false",
		"KEYSTILE_USAGE_RETENTION=72h", "KEYSTILE_USAGE_DAYS_RETENTION=26280h", "KEYSTILE_USAGE_NETWORK=full",
	), need: needsService}.load()
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	if diff := cmp.Diff(want, c.TrustedProxies, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("trusted proxies (-want +got):\n%s", diff)
	}
	got := []any{
		c.KeyFormat == mustKeyFormat(t, "acme2"), c.OnLimiterOutage, c.StaleMax, c.PublicURL.String(), c.Opaque401,
		c.LogLevel, c.LogFormat, c.Deployment, c.PolicyDir, c.TLSCert, c.TLSKey, c.TLSClientCA,
		c.DecisionLog, c.DecisionLogToken, c.Decisions, c.UsageRetention, c.UsageDaysRetention, c.UsageNetwork,
	}
	if diff := cmp.Diff([]any{
		true, authz.LimiterClosed, 24 * time.Hour, "https://auth.example/base", true,
		slog.LevelDebug, "json", "dev", "/etc/keystile", "/c", "/k", "/a",
		"https://siem.example/logs", "t",
		store.DecisionsKept{NoNetworks: true},
		72 * time.Hour, 3 * 365 * 24 * time.Hour, store.UsageNetworkFull,
	}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfig_WrongValuesAreRefusedByName(t *testing.T) {
	short := "a:" + strings.Repeat("A", 8) // base64 of too few bytes
	one := authz.NewPepper("a")
	refused := map[string][]string{
		"KEYSTILE_LISTEN":                    {"8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:65536", "::1:80", "127.0.0.1:-1"},
		"KEYSTILE_OPS_LISTEN":                {"x"},
		"KEYSTILE_ADMIN_LISTEN":              {"x", "127.0.0.1:65536"},
		"KEYSTILE_AUDIT_KEYS":                {"x", short, one + "," + one},
		"KEYSTILE_PPROF":                     {"1", "yes", "TRUE"},
		"KEYSTILE_INSECURE_PLAINTEXT":        {"on"},
		"KEYSTILE_DATABASE_URL":              {"mysql://x", "localhost", "postgres://a:b@[::1"},
		"KEYSTILE_PEPPERS":                   {"x", short, one + "," + one, "a:!!!", ":" + strings.Repeat("A", 44)},
		"KEYSTILE_KEY_PREFIX":                {"ksc", "ksa", "SK", "1a", "s_k", strings.Repeat("a", 17)},
		"KEYSTILE_ON_LIMITER_OUTAGE":         {"exact", "Local", "fail"},
		"KEYSTILE_STALE_MAX":                 {"5", "0s", "-5m", "24h1s", "a day"},
		"KEYSTILE_PUBLIC_URL":                {"auth.example", "/x", "ftp://a", "https://a?b=c", "https://a#b", "https://u:p@a", "https://"},
		"KEYSTILE_REALM":                     {`a"b`, `a\b`, "ä", "a\nb", strings.Repeat("a", 65)},
		"KEYSTILE_OPAQUE_401":                {"maybe"},
		"KEYSTILE_TRUSTED_PROXIES":           {"10.0.0.1", "10.0.0.0/33", "proxy"},
		"KEYSTILE_DEPLOYMENT":                {"prod"},
		"KEYSTILE_LOG_LEVEL":                 {"loud"},
		"KEYSTILE_LOG_FORMAT":                {"xml"},
		"KEYSTILE_POLICY_BUNDLE_URL":         {"bundles.example/b", "ftp://a/b", "https://a", "https://a/", "https:///b", "https://a/b#c"},
		"KEYSTILE_POLICY_BUNDLE_KEY":         {"x", "a:secret", "a:MEI="},
		"KEYSTILE_POLICY_BUNDLE_POLL":        {"1", "99ms", "2h"},
		"KEYSTILE_POLICY_BUNDLE_MIN_VERSION": {"0", "-1", "1.5", "v7"},
		// Decisions.
		"KEYSTILE_DECISION_LOG":           {"stderr", "file:", "/var/log/x", "ftp://a", "https://", "https://a?b=c", "https://u:p@a"},
		"KEYSTILE_DECISIONS_KEPT_FOR":     {"7", "1m", "721h", "-1h"},
		"KEYSTILE_DECISIONS_KEPT_SAMPLE":  {"-1", "0.1", "1000001", "all"},
		"KEYSTILE_DECISIONS_KEPT_NETWORK": {"no"},
		// Usage; days are kept for at least as long as the hours that they are added up from.
		"KEYSTILE_USAGE_RETENTION":      {"90", "23h", "9601h"},
		"KEYSTILE_USAGE_DAYS_RETENTION": {"400", "24h", "2159h", "26281h"},
		"KEYSTILE_USAGE_NETWORK":        {"none", "/24", "Full", "false"},
		// What this version has no part for must not be ignored.
		"KEYSTILE_GRPC_LISTEN":   {"127.0.0.1:1"},
		"KEYSTILE_PUBLIC_LISTEN": {"127.0.0.1:1"},
	}
	for name, values := range refused {
		for _, value := range values {
			_, _, err := configCase{environ: []string{name + "=" + value}}.load()
			if err == nil || exitCode(err) != exitInvalid || !strings.Contains(err.Error(), name) {
				t.Errorf("%s=%q: %v; want it refused by name, as configuration", name, value, err)
			}
		}
	}
}

func TestConfig_EveryProblemIsToldAtOnce(t *testing.T) {
	_, _, err := configCase{environ: []string{
		"KEYSTILE_LISTEN=x", "KEYSTILE_STALE_MAX=y", "KEYSTILE_GRPC_LISTEN=127.0.0.1:1", "KEYSTILE_TLS_CERT=/c",
	}, need: needsService}.load()
	for _, name := range []string{
		"KEYSTILE_LISTEN", "KEYSTILE_STALE_MAX", "KEYSTILE_GRPC_LISTEN", "KEYSTILE_TLS_KEY",
		"KEYSTILE_DATABASE_URL", "KEYSTILE_PEPPERS", "KEYSTILE_REDIS_URL",
	} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not told of in: %v", name, err)
		}
	}
	_, _, err = configCase{
		environ: []string{"KEYSTILE_LISTNE=x", "KEYSTILE_REALM=a", "KEYSTILE_REALM_FILE=/b", "KEYSTILE_TLS_KEY_FILE=/none"},
		file:    "lissten: x\nrealm: [a]\n",
	}.load()
	for _, text := range []string{"KEYSTILE_LISTNE", "KEYSTILE_LISTEN?", "KEYSTILE_REALM and KEYSTILE_REALM_FILE are both set", "KEYSTILE_TLS_KEY_FILE", "lissten", "realm in"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s is not told of in: %v", text, err)
		}
	}
}

func TestConfig_CommandsAskForWhatTheyNeed(t *testing.T) {
	if _, _, err := (configCase{}).load(); err != nil {
		t.Errorf("nothing is needed, and still: %v", err)
	}
	database := []string{"KEYSTILE_DATABASE_URL=postgres://127.0.0.1/x"}
	if _, _, err := (configCase{environ: database, need: needsDatabase}).load(); err != nil {
		t.Errorf("a database is all that is needed, and still: %v", err)
	}
	if _, _, err := (configCase{need: needsDatabase}).load(); err == nil {
		t.Error("a missing database is not noticed")
	}
	if _, _, err := (configCase{environ: database, need: needsService}).load(); err == nil {
		t.Error("missing peppers are not noticed")
	}
}

func TestConfig_PlaintextStaysOnLoopback(t *testing.T) {
	tls := []string{"KEYSTILE_TLS_CERT=/c", "KEYSTILE_TLS_KEY=/k"}
	tests := []struct {
		name    string
		environ []string
		allowed bool
	}{
		{"loopback", []string{"KEYSTILE_LISTEN=127.0.0.9:0"}, true},
		{"localhost", []string{"KEYSTILE_LISTEN=localhost:0"}, true},
		{"IPv6 loopback", []string{"KEYSTILE_LISTEN=[::1]:0"}, true},
		{"all interfaces", []string{"KEYSTILE_LISTEN=0.0.0.0:0"}, false},
		{"all interfaces, IPv6", []string{"KEYSTILE_LISTEN=[::]:0"}, false},
		{"all interfaces, no host", []string{"KEYSTILE_LISTEN=:8080"}, false},
		{"a name", []string{"KEYSTILE_LISTEN=localhost.example:0"}, false},
		{"ops on all interfaces", []string{"KEYSTILE_OPS_LISTEN=:9090"}, false},
		{"all interfaces, by will", []string{"KEYSTILE_LISTEN=:0", "KEYSTILE_OPS_LISTEN=:0", "KEYSTILE_INSECURE_PLAINTEXT=true"}, true},
		{"all interfaces with TLS", append([]string{"KEYSTILE_LISTEN=:0"}, tls...), true},
		{"a certificate without a key", tls[:1], false},
		{"a key without a certificate", tls[1:], false},
		{"decisions to this machine", []string{"KEYSTILE_DECISION_LOG=http://127.0.0.1:1/logs"}, true},
		{"decisions to another", []string{"KEYSTILE_DECISION_LOG=http://siem.example/logs"}, false},
		{"decisions to another with TLS", []string{"KEYSTILE_DECISION_LOG=https://siem.example/logs"}, true},
		{"decisions to another, by will", []string{"KEYSTILE_DECISION_LOG=http://siem.example/logs", "KEYSTILE_INSECURE_PLAINTEXT=true"}, true},
		{"a token that nobody gets", []string{"KEYSTILE_DECISION_LOG=stdout", "KEYSTILE_DECISION_LOG_TOKEN=x"}, false},
		{"authorities without a certificate", []string{"KEYSTILE_TLS_CLIENT_CA=/a"}, false},
	}
	for _, tt := range tests {
		_, _, err := configCase{environ: serving(tt.environ...), need: needsService}.load()
		if (err == nil) != tt.allowed {
			t.Errorf("%s: %v, want allowed %t", tt.name, err, tt.allowed)
		}
	}
}

// A policy has one source, and what comes from elsewhere is signed and, off this machine, encrypted.
func TestConfig_APolicyBundleHasItsKeyAndNoOtherSource(t *testing.T) {
	_, public := newBundleKey(t)
	key := "KEYSTILE_POLICY_BUNDLE_KEY=security:" + string(public)
	at := func(u string) string { return "KEYSTILE_POLICY_BUNDLE_URL=" + u }
	for name, c := range map[string]struct {
		environ []string
		says    string
	}{
		"with its key":                 {[]string{at("https://reader:pw@bundles.example/b"), key}, ""},
		"of this machine":              {[]string{at("http://127.0.0.1:8181/b"), key}, ""},
		"in plain text":                {[]string{at("http://bundles.example/b"), key}, "KEYSTILE_POLICY_BUNDLE_URL is not https"},
		"in plain text, and meant":     {[]string{at("http://bundles.example/b"), key, "KEYSTILE_INSECURE_PLAINTEXT=true"}, ""},
		"without a key":                {[]string{at("https://bundles.example/b")}, "belong together"},
		"a key alone":                  {[]string{key}, "belong together"},
		"beside a directory":           {[]string{at("https://bundles.example/b"), key, "KEYSTILE_POLICY_DIR=/policies"}, "keep one"},
		"a directory, and nothing set": {[]string{at(""), "KEYSTILE_POLICY_BUNDLE_KEY=", "KEYSTILE_POLICY_DIR=/policies"}, ""},
	} {
		_, _, err := configCase{environ: serving(c.environ...), need: needsService}.load()
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says != "" && (err == nil || exitCode(err) != exitInvalid || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v; want it to say %q", name, err, c.says)
		case err != nil && strings.Contains(err.Error(), "reader"):
			t.Errorf("%s: credentials are told: %v", name, err)
		}
	}
}

// Where nothing is configured, state is where the system or the user has it.
func TestStateDir_FollowsTheSystemsPlaces(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "")
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "/home/ada")
	for _, c := range []struct{ configured, name, value, want string }{
		{"", "HOME", "/home/ada", "/home/ada/.local/state/keystile"},
		{"", "XDG_STATE_HOME", "/state", "/state/keystile"},
		{"", "STATE_DIRECTORY", "/var/lib/authz:/var/lib/more", "/var/lib/authz"},
		{"/configured", "STATE_DIRECTORY", "/var/lib/authz", "/configured"},
	} {
		t.Setenv(c.name, c.value)
		if got := stateDir(Config{StateDir: c.configured}); got != c.want {
			t.Errorf("%s=%s: %s; want %s", c.name, c.value, got, c.want)
		}
	}
	t.Setenv("STATE_DIRECTORY", "")
	t.Setenv("XDG_STATE_HOME", "relative")
	t.Setenv("HOME", "")
	if got := stateDir(Config{}); got != "/var/lib/keystile" {
		t.Error(got)
	}
}

func TestConfig_UnknownVariableIsAWarningAndATypoAnError(t *testing.T) {
	ignored := []string{
		"KEYSTILE_SERVICE_HOST=10.0.0.1", "KEYSTILE_SERVICE_PORT=80", "KEYSTILE_SERVICE_PORT_HTTP=80", "KEYSTILE_PORT=tcp://10.0.0.1:80",
		"KEYSTILE_PORT_8080_TCP=tcp://10.0.0.1:80", "KEYSTILE_PORT_8080_TCP_ADDR=10.0.0.1", "KEYSTILE_PORT_8080_TCP_PROTO=tcp",
		"KEYSTILE_REDIS_SERVICE_HOST=10.0.0.1", "KEYSTILE_REDIS_PORT_6379_TCP_PORT=6379",
		"KEYSTILE_URL=http://127.0.0.1", "KEYSTILE_TOKEN=x", "KEYSTILE_ADMIN_TOKEN=x", "KEYSTILE_KEY=x",
		"KEYSTILE_TOKEN_TICKETS=x", "KEYSTILE_TOKEN_CUSTOMERS=x", "KEYSTILEX=1", "OTHER=1",
	}
	_, values, err := configCase{environ: ignored}.load()
	if err != nil || len(values.warnings) != 0 {
		t.Errorf("error %v, warnings %q; want these to be known", err, values.warnings)
	}
	_, values, err = configCase{environ: []string{"KEYSTILE_COLOUR=secret-value", "KEYSTILE_Realm=secret-value"}}.load()
	if err != nil || len(values.warnings) != 2 || strings.Contains(fmt.Sprint(values.warnings), "secret-value") {
		t.Errorf("error %v, warnings %q; want two that tell the names alone", err, values.warnings)
	}
	typos := map[string]string{
		"KEYSTILE_LISTE": "KEYSTILE_LISTEN", "KEYSTILE_LISTENN": "KEYSTILE_LISTEN", "KEYSTILE_LISTNE": "KEYSTILE_LISTEN",
		"KEYSTILE_PEPPER": "KEYSTILE_PEPPERS", "KEYSTILE_REALN": "KEYSTILE_REALM", "KEYSTILE_PEPPER_FILE": "KEYSTILE_PEPPERS",
		"KEYSTILE_OPAQUE401": "KEYSTILE_OPAQUE_401",
	}
	for typo, meant := range typos {
		_, _, err := configCase{environ: []string{typo + "=secret-value"}}.load()
		if err == nil || !strings.Contains(err.Error(), meant+"?") || strings.Contains(err.Error(), "secret-value") {
			t.Errorf("%s: %v; want a question for %s, without the value", typo, err, meant)
		}
	}
}

func TestConfig_FileIsStrict(t *testing.T) {
	for name, file := range map[string]string{
		"an unknown name":    "colour: red\n",
		"upper case":         "LISTEN: 127.0.0.1:0\n",
		"a list":             "trusted_proxies: [10.0.0.0/8]\n",
		"a mapping":          "listen: {host: x}\n",
		"a name twice":       "realm: a\nrealm: b\n",
		"no mapping":         "- realm\n",
		"no YAML":            "realm: [\n",
		"a value and a file": "realm: a\nrealm_file: b\n",
		"a dotted name":      "realm.x: a\n",
	} {
		if _, _, err := (configCase{file: file}).load(); err == nil || exitCode(err) != exitInvalid {
			t.Errorf("%s: %v; want it refused", name, err)
		}
	}
}

// Configuration goes into logs, crash reports and tickets: nothing in it may tell a secret.
func TestConfig_SecretsAreNeverPrinted(t *testing.T) {
	const secret = "correct-horse"
	wrong := []configCase{
		{environ: []string{"KEYSTILE_PEPPERS=a:" + secret}},
		{environ: []string{"KEYSTILE_DATABASE_URL=mysql://u:" + secret + "@h/d"}},
		{environ: []string{"KEYSTILE_DATABASE_URL=postgres://u:" + secret + "@h:x y/d"}},
		{environ: []string{"KEYSTILE_PEPPERS_FILE=" + secret}},
		{file: "peppers: *" + secret + "\n"},
		{file: "peppers: [" + secret + "]\n"},
		{environ: []string{"KEYSTILE_REDIS_URL=redis://" + secret, "KEYSTILE_REDIS_URL_FILE=x"}},
		{environ: []string{"KEYSTILE_DECISION_LOG=https://u:" + secret + "@h/logs"}},
		{environ: []string{"KEYSTILE_DECISION_LOG=https://h/logs?token=" + secret}},
		{environ: []string{"KEYSTILE_LISTEN=x", "KEYSTILE_PEPPERS=" + secret, "KEYSTILE_TOKEN=" + secret}},
	}
	for i, c := range wrong {
		if _, _, err := c.load(); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("case %d: %v; want an error without the secret", i, err)
		}
	}
	c, values, err := configCase{environ: []string{
		"KEYSTILE_DATABASE_URL=postgres://u:" + secret + "@127.0.0.1/d", "KEYSTILE_REDIS_URL=redis://:" + secret + "@127.0.0.1",
		"KEYSTILE_PEPPERS=" + authz.NewPepper("a"), "KEYSTILE_TOKEN=" + secret, "KEYSTILE_DECISION_LOG=https://h/logs", "KEYSTILE_DECISION_LOG_TOKEN=" + secret,
	}, need: needsService}.load()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, output := range []string{"table", "json", "yaml"} {
		if err := printSettings(&out, output, values); err != nil {
			t.Fatal(err)
		}
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "config", c, "pointer", &c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "config", c, "pointer", &c)
	encoded, err := json.Marshal(map[string]any{"config": c})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "%s %v %+v %#v %s %+v", encoded, c, c, c, c, &c)
	if strings.Contains(out.String(), secret) || strings.Contains(out.String(), "hunter2") {
		t.Errorf("a secret is printed in:\n%s", out.String())
	}
}

func TestConfig_SecretsHaveNoFlags(t *testing.T) {
	serve := newServeCommand()
	for _, s := range settings() {
		if flag := serve.Flags().Lookup(s.flag()); s.secret && flag != nil {
			t.Errorf("--%s would show a secret in the list of processes", flag.Name)
		}
	}
	for _, name := range []string{"config", "listen", "ops-listen", "stale-max", "trusted-proxies", "insecure-plaintext"} {
		if serve.Flags().Lookup(name) == nil {
			t.Errorf("serve has no --%s", name)
		}
	}
}

func TestConfigShow_TellsValueAndSource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keystile.yaml")
	if err := os.WriteFile(file, []byte("realm: file\nstale_max: 1m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KEYSTILE_STALE_MAX", "2m")
	t.Setenv("KEYSTILE_PEPPERS", authz.NewPepper("a"))
	t.Setenv("KEYSTILE_COLOUR", "red")
	var out, talk bytes.Buffer
	args := []string{"config", "show", "--config", file, "--listen", "127.0.0.1:0", "-o", "json"}
	if code := run(t.Context(), args, &out, &talk); code != 0 {
		t.Fatalf("exit %d: %s", code, talk.String())
	}
	var shown []shownSetting
	if err := json.Unmarshal(out.Bytes(), &shown); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, s := range shown {
		got[s.Name] = s.Value + " " + string(s.Source)
	}
	for name, want := range map[string]string{
		"KEYSTILE_LISTEN": "127.0.0.1:0 flag", "KEYSTILE_STALE_MAX": "2m environment", "KEYSTILE_REALM": "file file",
		"KEYSTILE_OPS_LISTEN": "127.0.0.1:9090 default", "KEYSTILE_PEPPERS": "[REDACTED] environment",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if !strings.Contains(talk.String(), "KEYSTILE_COLOUR") || strings.Contains(out.String(), "COLOUR") {
		t.Errorf("the warning belongs into the talk: %q", talk.String())
	}
}
