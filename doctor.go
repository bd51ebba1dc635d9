package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/origin"
	"github.com/supportstation/keystile/authz/ratelimit"
	"github.com/supportstation/keystile/store"
)

const (
	// adminWarning is how long before the last platform admin's token ends it is told.
	adminWarning = 14 * 24 * time.Hour
	// clockWarning is how far the machine's clock may be off: decisions go by Postgres',
	// but logs and ids do not.
	clockWarning = 5 * time.Second
)

// finding is one line of the doctor's.
type finding struct {
	// Check is what was looked at.
	Check string `json:"check" yaml:"check"`
	// State is ok, warning or error.
	State string `json:"state" yaml:"state"`
	// Says is what was found, and what to do about it.
	Says string `json:"says" yaml:"says"`
	// code is what the program ends with because of it.
	code int
}

// examination is what `doctor` prints.
type examination struct {
	Findings []finding `json:"findings" yaml:"findings"`
	// Missing are changes of the exported audit log that the database lacks.
	Missing []exportedChange `json:"missing" yaml:"missing"`
}

// exportedChange is a row of the audit log, as the export has it.
type exportedChange struct {
	id authz.EventID

	ID           string    `json:"id"              yaml:"id"`
	At           time.Time `json:"at"              yaml:"at"`
	Action       string    `json:"action"          yaml:"action"`
	Target       string    `json:"target"          yaml:"target"`
	Organization *string   `json:"organization_id" yaml:"organization_id"`
	Sequence     int64     `json:"sequence"        yaml:"sequence"`
	Revision     int64     `json:"revision"        yaml:"revision"`
}

func newDoctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at everything that serve needs, and say what is wrong and what to do",
		Long: `Look at everything that serve needs, with the same configuration: Postgres and its
schema, peppers, clocks, Redis, policies, platform admins, replicas. It changes nothing.

After a restore, or a failover to a standby that lagged, give it the audit log that
was exported before (keystile audit-log export): it lists the changes that the
database lacks, so that what was revoked can be revoked again. Replicas that were
running keep what they had seen revoked; one that starts afterwards does not know.

Exit status 4 when changes are missing, else 7 when Postgres or Redis does not answer,
else 3 when the configuration does not fit. Warnings alone are 0.`,
		Example: "  keystile doctor\n  keystile doctor --audit-log platform.jsonl --audit-log acme.jsonl",
		Args:    cobra.NoArgs,
	}
	output := cmd.Flags().StringP("output", "o", "table", "table, json or yaml")
	logs := cmd.Flags().StringArray("audit-log", nil, "an exported audit log; can be given more than once")
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(cmd, needsPeppers)
		if err != nil {
			return err
		}
		exported, err := readExports(*logs)
		if err != nil {
			return usageError(err)
		}
		e := examine(cmd.Context(), cfg, exported)
		if err := e.print(cmd.OutOrStdout(), *output); err != nil {
			return err
		}
		return e.err()
	}
	return cmd
}

func examine(ctx context.Context, cfg Config, exported []exportedChange) *examination {
	e := &examination{Findings: []finding{}, Missing: []exportedChange{}}
	d, err := store.Diagnose(ctx, store.Options{URL: cfg.DatabaseURL, Peppers: cfg.Peppers, Deployment: cfg.Deployment})
	if err != nil {
		e.add("postgres", exitDependency, "%v; check KEYSTILE_DATABASE_URL (%s) and the server", err, cfg.DatabaseURL)
	} else {
		e.database(d)
	}
	e.redis(ctx, cfg)
	e.policies(ctx, cfg, d)
	if err == nil && d.Schema == nil {
		e.missing(ctx, cfg, exported)
	}
	return e
}

func (e *examination) add(check string, code int, format string, args ...any) {
	e.Findings = append(e.Findings, finding{check, "error", fmt.Sprintf(format, args...), code})
}

func (e *examination) warn(check, format string, args ...any) {
	e.Findings = append(e.Findings, finding{check, "warning", fmt.Sprintf(format, args...), 0})
}

func (e *examination) ok(check, format string, args ...any) {
	e.Findings = append(e.Findings, finding{check, "ok", fmt.Sprintf(format, args...), 0})
}

func (e *examination) database(d *store.Diagnosis) {
	switch {
	case d.TooOld:
		e.add("postgres", exitInvalid, "version %s is too old; 14 or later is needed", d.Version)
	case d.Standby:
		e.warn("postgres", "version %s, a standby: checks are answered, no change can be made; is KEYSTILE_DATABASE_URL the primary's?", d.Version)
	default:
		e.ok("postgres", "version %s", d.Version)
	}
	if d.ClockAhead.Abs() > clockWarning {
		e.warn("clock", "this machine's clock is %v off Postgres'; decisions go by Postgres', logs do not: set up time synchronization",
			d.ClockAhead.Round(time.Second))
	} else {
		e.ok("clock", "within %v of Postgres'", clockWarning)
	}
	if d.Schema != nil {
		e.add("schema", exitInvalid, "%v", d.Schema)
		return
	}
	e.ok("schema", "this version's")
	if d.Deployment != nil {
		e.add("deployment", exitInvalid, "%v", d.Deployment)
	}
	if d.Peppers != nil {
		e.add("peppers", exitInvalid, "%v", d.Peppers)
	} else {
		e.ok("peppers", "every secret in use can be found")
	}
	e.admins(d)
	silent := 0
	for _, r := range d.Replicas {
		if !r.Live {
			silent++
			e.warn("replicas", "%s has been silent since %s and may serve what it knows until %s", r.Name,
				r.HeartbeatAt.UTC().Format(time.RFC3339), r.ServesUntil.UTC().Format(time.RFC3339))
		}
	}
	e.ok("replicas", "%d live, at revision %d", len(d.Replicas)-silent, d.Revision)
}

func (e *examination) admins(d *store.Diagnosis) {
	left := time.Until(d.AdminsUntil)
	switch {
	case d.PlatformAdmins == 0 && !d.Bootstrapped:
		e.ok("admins", "none yet; make the first with keystile admins bootstrap")
	case d.PlatformAdmins == 0:
		e.add("admins", exitInvalid, "no platform admin has a token that works, and a database is bootstrapped once in its life: "+
			"nobody can manage it any more")
	case left < adminWarning:
		e.warn("admins", "the last platform admin's token ends %s; rotate it in time (keystile admins rotate): nobody could manage afterwards",
			d.AdminsUntil.Format("2006-01-02 15:04 UTC"))
	case d.PlatformAdmins == 1:
		e.warn("admins", "one platform admin, until %s; keep two", d.AdminsUntil.Format("2006-01-02"))
	default:
		e.ok("admins", "%d platform admins, the last until %s", d.PlatformAdmins, d.AdminsUntil.Format("2006-01-02"))
	}
}

func (e *examination) redis(ctx context.Context, cfg Config) {
	if cfg.RedisURL == "" {
		e.warn("redis", "none is configured: each replica counts limits alone")
		return
	}
	l, err := ratelimit.New(ratelimit.Options{URL: cfg.RedisURL, Clock: store.NewClock()})
	if err != nil {
		e.add("redis", exitInvalid, "%v", err)
		return
	}
	defer func() { _ = l.Close() }()
	if err := l.Ping(ctx); err != nil {
		e.add("redis", exitDependency, "%v; limits are stood in for (%s) until it does", err, cfg.OnLimiterOutage)
		return
	}
	e.ok("redis", "answers")
}

// policies looks at what would be in force: a directory's policy, a bundle server's, what was
// activated, or the built-in one.
func (e *examination) policies(ctx context.Context, cfg Config, d *store.Diagnosis) {
	if cfg.PolicyBundleURL != nil {
		e.policyBundle(ctx, cfg)
		return
	}
	if cfg.PolicyDir == "" && d != nil && d.Policy != nil && d.Policy.Activation != nil && d.Policy.Activation.Revision != "" {
		source, err := policy.ReadArchive(d.Policy.Archive)
		if err == nil {
			_, err = source.Load(ctx)
		}
		if err != nil {
			e.add("policies", exitInvalid, "this program cannot load the policy that was activated (%s): %v; roll it back with the version that can, "+
				"or run keystile policy recover", d.Policy.Activation.Revision, err)
			return
		}
		e.ok("policies", "revision %s, activated %s", source.Revision(), d.Policy.Activation.At.Format(time.DateTime))
		return
	}
	engine, err := loadPolicies(ctx, cfg)
	if err != nil {
		e.add("policies", exitInvalid, "%v", err)
		return
	}
	e.ok("policies", "revision %s", engine.Revision())
}

// policyBundle looks at what the bundle server has, and at what a start without it would have.
func (e *examination) policyBundle(ctx context.Context, cfg Config) {
	b, err := newPolicyBundle(cfg, nil)
	if err != nil {
		e.add("policies", exitInvalid, "%v", err)
		return
	}
	defer b.Close()
	served, err := b.Look(ctx)
	kept, keptErr := b.Kept()
	var away *origin.ContactError
	switch {
	case err != nil && !errors.As(err, &away):
		e.add("policies", exitInvalid, "the bundle server's policy is refused: %v", err)
	case err == nil:
		if _, err := served.Source.Load(ctx); err != nil {
			e.add("policies", exitInvalid, "the bundle server's policy, version %d, cannot be loaded: %v", served.Version, err)
			return
		}
		e.ok("policies", "version %d of the bundle server, revision %s, signed by %s", served.Version, served.Source.Revision(), served.KeyID)
		if kept != nil && kept.Version > served.Version {
			e.warn("policies", "version %d was in force here, which is higher: what the bundle server has now is refused", kept.Version)
		}
	case keptErr != nil:
		e.add("policies", exitDependency, "%v (%s), and nothing is kept here that a start could do with: %v", away, b.State().URL, keptErr)
	default:
		e.warn("policies", "%v (%s); version %d, revision %s, was kept here", away, b.State().URL, kept.Version, kept.Source.Revision())
	}
}

// readExports reads what `audit-log export` wrote.
func readExports(names []string) ([]exportedChange, error) {
	var all []exportedChange
	for _, name := range names {
		file, err := os.Open(name) //nolint:gosec // the operator names the file
		if err != nil {
			return nil, fmt.Errorf("--audit-log: %w", err)
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 16<<20)
		n := 1
		for ; lines.Scan(); n++ {
			var c exportedChange
			err := json.Unmarshal(lines.Bytes(), &c)
			if err == nil {
				err = c.id.UnmarshalText([]byte(c.ID))
			}
			if err != nil || c.Action == "" {
				return nil, errors.Join(fmt.Errorf("--audit-log: %s:%d is not a row that `keystile audit-log export` writes", name, n), file.Close())
			}
			all = append(all, c)
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return nil, fmt.Errorf("--audit-log: %s: %w", name, err)
		}
		if n == 1 {
			return nil, fmt.Errorf("--audit-log: %s is empty: nothing can be compared with it; an export has a row at least", name)
		}
	}
	// The order in which they were made, whatever files they come from.
	slices.SortStableFunc(all, func(a, b exportedChange) int { return a.At.Compare(b.At) })
	return all, nil
}

// missing compares the exported audit log with the database.
func (e *examination) missing(ctx context.Context, cfg Config, exported []exportedChange) {
	if len(exported) == 0 {
		return
	}
	ids := make([]authz.EventID, len(exported))
	for i, c := range exported {
		ids[i] = c.id
	}
	missing, err := store.MissingEvents(ctx, cfg.DatabaseURL, ids)
	if err != nil {
		e.add("audit-log", exitDependency, "%v", err)
		return
	}
	for i, c := range exported {
		if missing[ids[i]] {
			e.Missing = append(e.Missing, c)
		}
	}
	if len(e.Missing) == 0 {
		e.ok("audit-log", "the database has all %d exported changes", len(exported))
		return
	}
	e.add("audit-log", exitFindings, "the database lacks %d of %d exported changes: it was put back to an earlier state. "+
		"Do again what took rights away, revocations first", len(e.Missing), len(exported))
}

func (e *examination) print(w io.Writer, output string) error {
	return printData(w, output, e, func(table io.Writer) {
		_, _ = fmt.Fprintln(table, "CHECK\tSTATE\tSAYS")
		for _, f := range e.Findings {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", f.Check, f.State, f.Says)
		}
		if len(e.Missing) == 0 {
			return
		}
		_, _ = fmt.Fprintln(table, "\nMISSING ACTION\tTARGET\tAT")
		for _, c := range e.Missing {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", c.Action, c.Target, c.At.UTC().Format(time.RFC3339))
		}
	})
}

// err is the worst that was found: what is missing, then who does not answer, then what
// does not fit. Warnings are none.
func (e *examination) err() error {
	found, code := 0, 0
	for _, f := range e.Findings {
		if f.State != "error" {
			continue
		}
		found++
		if f.code == exitFindings || code != exitFindings && f.code > code {
			code = f.code
		}
	}
	if found == 0 {
		return nil
	}
	return exitWith(code, fmt.Errorf("%d of %d checks found an error", found, len(e.Findings)))
}
