package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/supportstation/keystile/authz/policy/origin"
)

const (
	configPrefix = "KEYSTILE_"
	// fileSuffix marks a variable or name whose value is read from a file.
	fileSuffix = "_file"
	// maxConfigFile bounds any file that configuration is read from, in bytes.
	maxConfigFile = 1 << 20
)

// configNeed tells which settings a command cannot do without.
type configNeed int

const (
	needsNothing configNeed = iota
	needsDatabase
	needsPeppers
	needsService
)

// configSource is where a value came from: flag > environment > file > default.
type configSource string

// configInput is everything that configuration is read from.
type configInput struct {
	// flags are those that were given, by setting name.
	flags   map[string]string
	environ []string
	// file is the path of --config, or empty.
	file     string
	readFile func(string) ([]byte, error)
}

// configValues are the merged values with their sources, before they are checked.
type configValues struct {
	text     map[string]string
	source   map[string]configSource
	warnings []string
}

// addConfigFlags adds --config and a flag for every setting that is no secret; the
// function that it returns reads the configuration when the command runs.
func addConfigFlags(cmd *cobra.Command) func(*cobra.Command, configNeed) (Config, error) {
	read := addValueFlags(cmd)
	return func(cmd *cobra.Command, need configNeed) (Config, error) {
		values, err := read(cmd)
		if err != nil {
			return Config{}, err
		}
		for _, w := range values.warnings {
			_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
		}
		return values.check(need)
	}
}

func addValueFlags(cmd *cobra.Command) func(*cobra.Command) (configValues, error) {
	file := cmd.Flags().String("config", "", "YAML file with settings, by their names in lower case")
	given := make(map[string]*string)
	for _, s := range settings() {
		if s.secret || s.parse == nil && !s.planned || s.name == "deployment" {
			continue
		}
		given[s.name] = cmd.Flags().String(s.flag(), "", s.form)
		if s.fallback != "" {
			cmd.Flags().Lookup(s.flag()).Usage += " (default " + s.fallback + ")"
		}
	}
	return func(cmd *cobra.Command) (configValues, error) {
		in := configInput{flags: make(map[string]string), environ: os.Environ(), file: *file, readFile: readConfigFile}
		cmd.Flags().Visit(func(f *pflag.Flag) {
			name := strings.ReplaceAll(f.Name, "-", "_")
			if value := given[name]; value != nil {
				in.flags[name] = *value
			}
		})
		return in.merge()
	}
}

// configFromEnvironment reads a configuration for the service from variables alone.
func configFromEnvironment(variables map[string]string) (Config, error) {
	in := configInput{readFile: readConfigFile}
	for name, value := range variables {
		in.environ = append(in.environ, name+"="+value)
	}
	values, err := in.merge()
	if err != nil {
		return Config{}, err
	}
	return values.check(needsService)
}

func readConfigFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller names the setting
	}
	if info.Size() > maxConfigFile {
		return nil, fmt.Errorf("the file has more than %d bytes", maxConfigFile)
	}
	return os.ReadFile(path) //nolint:gosec,wrapcheck // the operator's own file; the caller names the setting
}

// merge lays the sources over each other. Everything wrong is told at once.
func (in configInput) merge() (configValues, error) {
	out := configValues{text: make(map[string]string), source: make(map[string]configSource)}
	known := make(map[string]setting)
	defaults := make(map[string]any)
	for _, s := range settings() {
		known[s.name] = s
		if s.fallback != "" {
			defaults[s.name] = s.fallback
		}
	}
	var problems []error
	fromFile, err := in.fromFile(known)
	problems = append(problems, err)
	fromEnv, warnings, err := in.fromEnvironment(known)
	problems = append(problems, err)
	out.warnings = warnings
	fromFlags := make(map[string]any)
	for name, value := range in.flags {
		fromFlags[name] = value
	}
	merged := koanf.New(".")
	for _, layer := range []struct {
		source configSource
		values map[string]any
	}{{"default", defaults}, {"file", fromFile}, {"environment", fromEnv}, {"flag", fromFlags}} {
		if err := merged.Load(confmap.Provider(layer.values, ""), nil); err != nil {
			problems = append(problems, fmt.Errorf("settings: %w", err))
		}
		for name := range layer.values {
			out.source[name] = layer.source
		}
	}
	for _, name := range merged.Keys() {
		out.text[name] = merged.String(name)
	}
	if err := errors.Join(problems...); err != nil {
		return configValues{}, configError(err)
	}
	return out, nil
}

// fromFile reads the file of --config.
func (in configInput) fromFile(known map[string]setting) (map[string]any, error) {
	if in.file == "" {
		return nil, nil
	}
	raw, err := in.readFile(in.file)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	k := koanf.New("\x00") // no delimiter: names are flat
	if err := k.Load(rawbytes.Provider(raw), yaml.Parser()); err != nil {
		return nil, fmt.Errorf("--config %s is not a YAML mapping of names to values", in.file)
	}
	given := make(map[string]string)
	var problems []error
	raws := k.Raw()
	for _, name := range slices.Sorted(maps.Keys(raws)) {
		switch v := raws[name].(type) {
		case string:
			given[name] = v
		case bool, int, float64:
			given[name] = fmt.Sprint(v)
		default:
			problems = append(problems, fmt.Errorf("%s in %s must be a single value", name, in.file))
		}
	}
	values, errs := in.resolveFiles(given, known, func(name string) string { return name + " in " + in.file })
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, ok := known[name]; !ok {
			errs = append(errs, fmt.Errorf("%s in %s is not a setting; `keystile config show` lists them", name, in.file))
		}
	}
	return values, errors.Join(append(problems, errs...)...)
}

// fromEnvironment reads KEYSTILE_ variables. An unknown one is a warning, and an
// error when it is one typo away from a known one: it was meant to do something.
func (in configInput) fromEnvironment(known map[string]setting) (values map[string]any, warnings []string, err error) {
	given := make(map[string]string)
	k := koanf.New("\x00")
	provider := env.Provider("\x00", env.Opt{
		Prefix: configPrefix, EnvironFunc: func() []string { return in.environ },
		TransformFunc: func(name, value string) (string, any) {
			if name != strings.ToUpper(name) { // another variable, as the environment sees it
				warnings = append(warnings, name+" is not a setting and has no effect: settings are in upper case")
				return "", nil
			}
			given[strings.ToLower(strings.TrimPrefix(name, configPrefix))] = value
			return name, value
		},
	})
	if err := k.Load(provider, nil); err != nil {
		return nil, nil, fmt.Errorf("read the environment: %w", err)
	}
	values, problems := in.resolveFiles(given, known, func(name string) string { return configPrefix + strings.ToUpper(name) })
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, ok := known[name]; ok {
			continue
		}
		delete(values, name)
		if injectedByKubernetes(name) {
			continue
		}
		variable := configPrefix + strings.ToUpper(name)
		if near := nearestSetting(name, known); near != "" {
			problems = append(problems, fmt.Errorf("%s is not a setting; did you mean %s?", variable, known[near].variable()))
		} else {
			warnings = append(warnings, variable+" is not a setting and has no effect")
		}
	}
	slices.Sort(warnings)
	return values, warnings, errors.Join(problems...)
}

// resolveFiles replaces x_file by x with the file's content, less one newline at its
// end. An empty value is no value: it leaves what a source below it says.
func (in configInput) resolveFiles(given map[string]string, known map[string]setting, call func(string) string) (map[string]any, []error) {
	values := make(map[string]any)
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		value := given[name]
		bare, isFile := strings.CutSuffix(name, fileSuffix)
		if _, ok := known[bare]; !isFile || !ok {
			if _, ok := known[name]; !ok || value != "" {
				values[name] = value
			}
			continue
		}
		if value == "" {
			continue
		}
		if given[bare] != "" {
			problems = append(problems, fmt.Errorf("%s and %s are both set; keep one", call(bare), call(name)))
			continue
		}
		raw, err := in.readFile(value)
		if err != nil {
			var path *fs.PathError
			if errors.As(err, &path) {
				err = path.Err // without the path: it may be a secret that should have been in the file
			}
			problems = append(problems, fmt.Errorf("%s: its file cannot be read: %w", call(name), err))
			continue
		}
		if content := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"); content != "" {
			values[bare] = content
		}
	}
	return values, problems
}

// check makes a Config of the values, or tells everything that is wrong with them.
// A value is repeated only when it is no secret.
func (v configValues) check(need configNeed) (Config, error) {
	var c Config
	var problems []error
	for _, s := range settings() {
		text, given := v.text[s.name]
		switch {
		case !given || s.parse == nil && !s.planned:
			continue
		case s.planned:
			problems = append(problems, fmt.Errorf("%s is not supported by this version; remove it", s.variable()))
			continue
		}
		if err := s.parse(&c, text); err != nil {
			shown := ""
			if s.shown(text) == text {
				shown = fmt.Sprintf(" %q", text)
			}
			problems = append(problems, fmt.Errorf("%s%s: %w; accepted: %s", s.variable(), shown, err, s.form))
		}
	}
	problems = append(problems, v.checkTogether(c, need)...)
	if err := errors.Join(problems...); err != nil {
		return Config{}, configError(err)
	}
	return c, nil
}

// checkTogether tells what is wrong between settings, and which are missing.
func (v configValues) checkTogether(c Config, need configNeed) []error {
	var problems []error
	require := func(name string) {
		for _, s := range settings() {
			if s.name == name && v.text[name] == "" {
				problems = append(problems, fmt.Errorf("%s is required: %s", s.variable(), s.form))
			}
		}
	}
	if c.UsageDaysRetention < c.UsageRetention {
		problems = append(problems, fmt.Errorf("%sUSAGE_DAYS_RETENTION (%s) must not be below %sUSAGE_RETENTION (%s): days are added up from hours",
			configPrefix, c.UsageDaysRetention, configPrefix, c.UsageRetention))
	}
	if need >= needsDatabase {
		require("database_url")
	}
	if need >= needsPeppers {
		require("peppers")
	}
	if need >= needsPeppers {
		problems = append(problems, checkPolicySource(c)...)
	}
	if need < needsService {
		return problems
	}
	if c.RedisURL == "" && c.Deployment == "" {
		require("redis_url")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") || c.TLSClientCA != "" && c.TLSCert == "" {
		problems = append(problems, errors.New("KEYSTILE_TLS_CERT and KEYSTILE_TLS_KEY belong together, and KEYSTILE_TLS_CLIENT_CA needs both"))
	}
	problems = append(problems, c.checkDecisionLog()...)
	for _, l := range []struct {
		variable, address string
		tls               bool
	}{
		{"KEYSTILE_LISTEN", c.Listen, c.TLSCert != ""},
		{"KEYSTILE_ADMIN_LISTEN", c.AdminListen, c.TLSCert != ""},
		{"KEYSTILE_OPS_LISTEN", c.OpsListen, false},
	} {
		if l.address != "" && !l.tls && !c.InsecurePlaintext && !loopback(l.address) {
			problems = append(problems, fmt.Errorf("%s %q is not a loopback address and would be served without TLS; "+
				"set KEYSTILE_TLS_CERT and KEYSTILE_TLS_KEY (check and management API), listen on 127.0.0.1, or set KEYSTILE_INSECURE_PLAINTEXT=true", l.variable, l.address))
		}
	}
	return problems
}

// checkPolicySource tells what is wrong about where the policy comes from.
func checkPolicySource(c Config) []error {
	var problems []error
	at, keyed := c.PolicyBundleURL, len(c.PolicyBundleKeys.IDs()) > 0
	if at != nil && c.PolicyDir != "" {
		problems = append(problems, errors.New("KEYSTILE_POLICY_DIR and KEYSTILE_POLICY_BUNDLE_URL are both set; one source of policies is in force, so keep one"))
	}
	if (at != nil) != keyed {
		problems = append(problems, errors.New("KEYSTILE_POLICY_BUNDLE_URL and KEYSTILE_POLICY_BUNDLE_KEY belong together: no bundle is taken whose signature cannot be verified"))
	}
	if at != nil && at.Scheme != "https" && !origin.Local(at) && !c.InsecurePlaintext {
		problems = append(problems, errors.New("KEYSTILE_POLICY_BUNDLE_URL is not https, and not of this machine; use https, or set KEYSTILE_INSECURE_PLAINTEXT=true"))
	}
	return problems
}

// checkDecisionLog refuses to send decisions in the clear, and a token that nobody gets.
func (c Config) checkDecisionLog() []error {
	u, err := url.Parse(c.DecisionLog)
	isURL := err == nil && u.Host != ""
	var problems []error
	if isURL && u.Scheme == "http" && !c.InsecurePlaintext && !loopback(net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))) {
		problems = append(problems, fmt.Errorf("KEYSTILE_DECISION_LOG %q would send decisions without TLS; "+
			"use https, an address of this machine, or set KEYSTILE_INSECURE_PLAINTEXT=true", c.DecisionLog))
	}
	if c.DecisionLogToken != "" && !isURL {
		problems = append(problems, errors.New("KEYSTILE_DECISION_LOG_TOKEN goes with a URL in KEYSTILE_DECISION_LOG; set that, or remove the token"))
	}
	return problems
}

// injectedByKubernetes tells whether a name is one of those that Kubernetes sets for
// a Service named keystile…: KEYSTILE_SERVICE_HOST, KEYSTILE_PORT_8080_TCP_ADDR, ….
func injectedByKubernetes(name string) bool {
	return name == "port" || strings.HasPrefix(name, "port_") || strings.HasSuffix(name, "service_host") ||
		strings.HasSuffix(name, "service_port") || strings.Contains(name, "service_port_") || strings.Contains(name, "_port_") ||
		strings.HasSuffix(name, "_port")
}

// nearestSetting returns the known name that one typo (a character more, less,
// changed, or two swapped) would make of name, or "".
func nearestSetting(name string, known map[string]setting) string {
	bare := strings.TrimSuffix(name, fileSuffix)
	var near []string
	for candidate := range known {
		if oneTypo(bare, candidate) || oneTypo(name, candidate+fileSuffix) {
			near = append(near, candidate)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return slices.Min(near)
}

func oneTypo(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 || a == b {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) < len(b) {
		return a[i:] == b[i+1:]
	}
	if a[i+1:] == b[i+1:] {
		return true
	}
	return i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
}
