package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy/bundle"
	"github.com/supportstation/keystile/authz/policy/origin"
	"github.com/supportstation/keystile/store"
)

// setting is one thing that can be configured: KEYSTILE_NAME, --name, or name in a file.
type setting struct {
	// name is in lower case with underscores, without the prefix.
	name string
	// form tells the accepted form, for messages and help.
	form     string
	fallback string
	// secret settings have no flag and are never printed.
	secret bool
	// parse checks a value and puts it into c. Nil for names that are known and not
	// the service's own: those of clients, and what dev hands to a command.
	parse func(c *Config, value string) error
	// planned settings belong to parts that this version does not have: setting one
	// is refused, because ignoring it could open what it was meant to close.
	planned bool
}

// variable returns the environment variable's name.
func (s setting) variable() string { return configPrefix + strings.ToUpper(s.name) }

// shown returns a value as it may be printed: nothing of a secret, nor of a URL with a password
// or a query, which may be one.
func (s setting) shown(value string) string {
	_, rest, isURL := strings.Cut(value, "://")
	if value != "" && (s.secret || isURL && strings.ContainsAny(rest, "@?")) {
		return "[REDACTED]"
	}
	return value
}

// flag returns the flag's name without dashes.
func (s setting) flag() string { return strings.ReplaceAll(s.name, "_", "-") }

// settings is the whole table, in the order of the documentation.
func settings() []setting {
	return []setting{
		{
			name: "listen", form: "host:port of the check API; port 0 takes a free one", fallback: "127.0.0.1:8080",
			parse: parseAddress(func(c *Config) *string { return &c.Listen }),
		},
		{
			name: "admin_listen", form: "host:port of the management API; empty: that of the check API",
			parse: func(c *Config, v string) error {
				if v == "" {
					return nil
				}
				return parseAddress(func(c *Config) *string { return &c.AdminListen })(c, v)
			},
		},
		{
			name: "ops_listen", form: "host:port of /metrics and detailed /readyz", fallback: "127.0.0.1:9090",
			parse: parseAddress(func(c *Config) *string { return &c.OpsListen }),
		},
		{name: "grpc_listen", form: "host:port of Envoy's ext_authz", planned: true},
		{name: "public_listen", form: "host:port for leak reports", planned: true},
		{
			name: "pprof", form: "true or false: profiles on the ops listener", fallback: "false",
			parse: parseBool(func(c *Config) *bool { return &c.Pprof }),
		},
		{name: "tls_cert", form: "file with a certificate chain in PEM form", parse: parseText(func(c *Config) *string { return &c.TLSCert })},
		{name: "tls_key", form: "file with the certificate's key in PEM form", parse: parseText(func(c *Config) *string { return &c.TLSKey })},
		{
			name: "tls_client_ca", form: "file with authorities in PEM form; clients must then show a certificate",
			parse: parseText(func(c *Config) *string { return &c.TLSClientCA }),
		},
		{
			name: "insecure_plaintext", form: "true or false: plain HTTP on an address that is not loopback", fallback: "false",
			parse: parseBool(func(c *Config) *bool { return &c.InsecurePlaintext }),
		},
		{
			name: "database_url", form: "postgres://user:password@host:5432/database", secret: true,
			parse: func(c *Config, v string) (err error) { c.DatabaseURL, err = store.ParseDatabaseURL(v); return err },
		},
		{
			name: "redis_url", form: "redis://, rediss:// or unix://; with addr= parameters a Redis Cluster", secret: true,
			parse: parseText(func(c *Config) *string { return &c.RedisURL }),
		},
		{
			name: "peppers", form: "id:base64[,...], at least 32 bytes each, the first for new keys", secret: true,
			parse: func(c *Config, v string) (err error) { c.Peppers, err = authz.ParsePeppers(v); return err },
		},
		{
			name: "audit_keys", form: "id:base64[,...] like peppers, for the audit log's MACs; empty: derived from the peppers", secret: true,
			parse: func(c *Config, v string) (err error) { c.AuditKeys, err = authz.ParsePeppers(v); return err },
		},
		{
			name: "audit_checkpoints", form: "file to which the audit log's signed checkpoints are appended",
			parse: parseText(func(c *Config) *string { return &c.AuditCheckpoints }),
		},
		{
			name: "key_prefix", form: "a lower-case letter, then up to 15 lower-case letters or digits", fallback: authz.DefaultKeyPrefix,
			parse: func(c *Config, v string) (err error) { c.KeyFormat, err = authz.NewKeyFormat(v); return err },
		},
		{name: "policy_dir", form: "directory with policies, in place of the built-in ones", parse: parseText(func(c *Config) *string { return &c.PolicyDir })},
		{
			name: "policy_bundle_url", form: "https URL of a signed OPA bundle, in place of the built-in policy; may have user:password@", secret: true,
			parse: parseBundleURL,
		},
		{
			name: "policy_bundle_key", form: "id:key[,...], public keys of the bundle's signature, in PEM form or its base64; P-256 or RSA", secret: true,
			parse: func(c *Config, v string) (err error) { c.PolicyBundleKeys, err = bundle.ParseKeys(v); return err },
		},
		{
			name: "policy_bundle_poll", form: "duration between 100ms and 1h: how often a new bundle is asked for", fallback: origin.DefaultBundlePoll.String(),
			parse: parseDuration(origin.MinBundlePoll, origin.MaxBundlePoll, func(c *Config) *time.Duration { return &c.PolicyBundlePoll }),
		},
		{
			name: "policy_bundle_min_version", form: "whole number: no bundle of a lower version is taken, also where none was kept", fallback: "1",
			parse: parseBundleVersion,
		},
		{
			name: "state_dir", form: "folder for what a restart needs (the last good policy, usage that could not be written); empty: $STATE_DIRECTORY, or keystile in $XDG_STATE_HOME, ~/.local/state or /var/lib",
			parse: parseText(func(c *Config) *string { return &c.StateDir }),
		},
		{
			name: "on_limiter_outage", form: "local, closed or open", fallback: string(authz.LimiterLocal),
			parse: parseEnum(func(c *Config) *authz.LimiterMode { return &c.OnLimiterOutage },
				authz.LimiterLocal, authz.LimiterClosed, authz.LimiterOpen),
		},
		{
			name: "stale_max", form: "duration between 1s and 24h", fallback: store.DefaultStaleMax.String(),
			parse: parseDuration(time.Second, 24*time.Hour, func(c *Config) *time.Duration { return &c.StaleMax }),
		},
		{
			name: "usage_retention", form: "duration between 48h and 9600h (400 days): for how long usage by the hour, and with it recorded requests, is kept",
			fallback: "2160h", parse: parseDuration(48*time.Hour, 9600*time.Hour, func(c *Config) *time.Duration { return &c.UsageRetention }),
		},
		{
			name: "usage_days_retention", form: "duration between 48h and 26280h (three years), not below usage_retention: for how long usage by the day and by network is kept",
			fallback: "9600h", parse: parseDuration(48*time.Hour, 26280*time.Hour, func(c *Config) *time.Duration { return &c.UsageDaysRetention }),
		},
		{
			name: "usage_network", form: "truncated (/24, /48), full or off: what usage keeps of the clients' addresses", fallback: string(store.UsageNetworkTruncated),
			parse: parseEnum(func(c *Config) *store.UsageNetwork { return &c.UsageNetwork },
				store.UsageNetworkTruncated, store.UsageNetworkFull, store.UsageNetworkOff),
		},
		{name: "public_url", form: "absolute http or https URL without query", parse: parsePublicURL},
		{name: "realm", form: "printable ASCII without quotes", fallback: "api", parse: parseRealm},
		{
			name: "opaque_401", form: "true or false: one 401 for all reasons", fallback: "false",
			parse: parseBool(func(c *Config) *bool { return &c.Opaque401 }),
		},
		{name: "trusted_proxies", form: "CIDRs, separated by commas; for management addresses only", parse: parseCIDRs},
		{
			name: "decision_log", form: "stdout, file:PATH, or an https URL that takes OPA's decision logs; empty: off",
			parse: parseDecisionLog,
		},
		{
			name: "decision_log_token", form: "bearer token for the decision log's URL", secret: true,
			parse: parseText(func(c *Config) *string { return &c.DecisionLogToken }),
		},
		{
			name: "decisions_kept_for", form: "duration between 1h and 720h; 0 keeps no decision", fallback: store.DefaultKeepDecisions.String(),
			parse: parseDecisionsKeptFor,
		},
		{
			name: "decisions_kept_sample", form: "of allows one in so many is kept, up to 1000000; 0 none, 1 all", fallback: strconv.Itoa(store.DefaultDecisionSample),
			parse: parseDecisionsKeptSample,
		},
		{
			name: "decisions_kept_network", form: "true or false: keep the client's network (/24, /48) with a decision", fallback: "true",
			parse: func(c *Config, v string) error {
				var kept bool
				err := parseBool(func(*Config) *bool { return &kept })(c, v)
				c.Decisions.NoNetworks = !kept
				return err
			},
		},
		{
			name: "deployment", form: "dev to join the demonstration of keystile dev, else empty",
			parse: func(c *Config, v string) error {
				if v != "" && v != store.DeploymentDev {
					return fmt.Errorf("there is no such deployment")
				}
				c.Deployment = v
				return nil
			},
		},
		{
			name: "log_level", form: "debug, info, warn or error", fallback: "info",
			parse: func(c *Config, v string) error { return c.LogLevel.UnmarshalText([]byte(v)) },
		},
		{
			name: "log_format", form: "text or json", fallback: "text",
			parse: parseEnum(func(c *Config) *string { return &c.LogFormat }, "text", "json"),
		},
		{name: "url", form: "URL of the service, for clients"},
		{name: "token", form: "a caller's token, for clients", secret: true},
		{name: "admin_token", form: "an admin's token, for clients", secret: true},
		{name: "key", form: "an API key, for keystile check", secret: true},
		{name: "token_tickets", form: "the tickets app's token, for the example apps", secret: true},
		{name: "token_customers", form: "the customers app's token, for the example apps", secret: true},
	}
}

func parseText(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		*field(c) = v
		return nil
	}
}

func parseBool(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil || v != "true" && v != "false" {
			return fmt.Errorf("must be true or false")
		}
		*field(c) = b
		return nil
	}
}

func parseEnum[T ~string](field func(*Config) *T, accepted ...T) func(*Config, string) error {
	return func(c *Config, v string) error {
		for _, a := range accepted {
			if T(v) == a {
				*field(c) = a
				return nil
			}
		}
		return fmt.Errorf("is none of them")
	}
}

func parseAddress(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		_, port, err := net.SplitHostPort(v)
		if err != nil {
			return fmt.Errorf("has no host:port form")
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fmt.Errorf("port must be a number from 0 to 65535")
		}
		*field(c) = v
		return nil
	}
}

func parseBundleURL(c *Config, v string) error {
	if v == "" {
		return nil
	}
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") || u.Path == "" {
		return fmt.Errorf("is not such a URL, with the path of a file")
	}
	c.PolicyBundleURL = u
	return nil
}

func parseBundleVersion(c *Config, v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 1 {
		return errors.New("is no whole number from 1 on")
	}
	c.PolicyBundleMinVersion = n
	return nil
}

func parseDuration(least, most time.Duration, field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil {
			return fmt.Errorf("is not a duration like 5m")
		}
		if d < least || d > most {
			return fmt.Errorf("is out of range")
		}
		*field(c) = d
		return nil
	}
}

func parsePublicURL(c *Config, v string) error {
	if v == "" {
		return nil
	}
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("is not such a URL")
	}
	c.PublicURL = u
	return nil
}

func parseRealm(c *Config, v string) error {
	for _, r := range v {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return fmt.Errorf("has another character")
		}
	}
	if v == "" || len(v) > 64 {
		return fmt.Errorf("must have 1 to 64 characters")
	}
	c.Realm = v
	return nil
}

func parseCIDRs(c *Config, v string) error {
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return fmt.Errorf("has a part that is not a CIDR like 10.0.0.0/8")
		}
		c.TrustedProxies = append(c.TrustedProxies, prefix.Masked())
	}
	return nil
}

// parseDecisionLog takes where decisions are logged. A URL's host and scheme are judged with
// the other settings.
func parseDecisionLog(c *Config, v string) error {
	path, isFile := strings.CutPrefix(v, "file:")
	switch {
	case v == "", v == "stdout":
	case isFile && path == "":
		return fmt.Errorf("names no file")
	case isFile:
	default:
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return fmt.Errorf("is none of them, or a URL with a query or a password")
		}
	}
	c.DecisionLog = v
	return nil
}

func parseDecisionsKeptFor(c *Config, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		return fmt.Errorf("is not a duration like 168h")
	}
	if d != 0 && (d < time.Hour || d > 720*time.Hour) {
		return fmt.Errorf("is out of range")
	}
	c.Decisions.For = d
	return nil
}

func parseDecisionsKeptSample(c *Config, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > 1_000_000 {
		return fmt.Errorf("is not such a number")
	}
	c.Decisions.Sample = n
	return nil
}

// Config is the service's configuration, checked. It holds secrets, so it prints as
// its name alone, however it is printed; `config show` tells what is in it.
type Config struct {
	Listen, AdminListen          string
	OpsListen                    string
	Pprof, InsecurePlaintext     bool
	TLSCert, TLSKey, TLSClientCA string
	DatabaseURL                  store.DatabaseURL
	RedisURL                     string
	Peppers, AuditKeys           authz.Peppers
	AuditCheckpoints             string
	KeyFormat                    authz.KeyFormat
	PolicyDir                    string
	PolicyBundleURL              *url.URL
	PolicyBundleKeys             bundle.Keys
	PolicyBundlePoll             time.Duration
	PolicyBundleMinVersion       int64
	StateDir                     string
	OnLimiterOutage              authz.LimiterMode
	StaleMax                     time.Duration
	UsageRetention               time.Duration
	UsageDaysRetention           time.Duration
	UsageNetwork                 store.UsageNetwork
	PublicURL                    *url.URL
	Realm                        string
	Opaque401                    bool
	TrustedProxies               []netip.Prefix
	Deployment                   string
	DecisionLog                  string
	DecisionLogToken             string
	Decisions                    store.DecisionsKept
	LogLevel                     slog.Level
	LogFormat                    string
}

const configText = "Config[REDACTED]"

// Format implements fmt.Formatter, so that no verb reaches a secret.
func (Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, configText) }

// MarshalText implements encoding.TextMarshaler (JSON, YAML).
func (Config) MarshalText() ([]byte, error) { return []byte(configText), nil } //nolint:unparam // the interface has an error

// LogValue implements slog.LogValuer.
func (Config) LogValue() slog.Value { return slog.StringValue(configText) }
