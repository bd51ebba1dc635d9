package faults

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/sdk/admin"
	"github.com/supportstation/keystile/store"
)

// said is how a run of the program ended: its exit code, -1 for one that was killed, and
// what it printed.
type said struct {
	code           int
	stdout, stderr string
}

// command runs the program to its end.
func (s *site) command(env map[string]string, args ...string) said {
	s.Helper()
	var stdout bytes.Buffer
	end := s.runProgram(s.Context(), env, &stdout, args...)
	end.stdout = stdout.String()
	return end
}

// tryServe starts a replica that may end by itself. One that is ready is killed.
func (s *site) tryServe(more map[string]string) said {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	return s.runProgram(ctx, more, written(cancel), "serve", "-o", "json")
}

// written is called when anything is written.
type written func()

// Write implements io.Writer.
func (w written) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

func (s *site) runProgram(ctx context.Context, env map[string]string, stdout io.Writer, args ...string) said {
	s.Helper()
	program, err := built.path()
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}
	for _, variables := range []map[string]string{s.env, env} {
		for name, value := range variables {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = stdout, &stderr, dieWithParent()
	// The kernel takes the end of the thread that started a process for its parent's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); cmd.ProcessState == nil {
		s.Fatalf("run keystile %v: %v", args, err)
	}
	return said{code: cmd.ProcessState.ExitCode(), stderr: stderr.String()}
}

// newOrganization makes a further organization by management.
func (s *site) newOrganization(on *replica, name string) string {
	s.Helper()
	change, err := s.management(on).CreateOrganization(s.Context(), admin.OrganizationCreate{Name: name, Plan: "standard"})
	if err != nil {
		s.Fatal(err)
	}
	return change.Organization.ID
}

// elsewhere stores keys of another organization, before replicas start.
func (s *site) elsewhere(n int, name string) (authz.OrganizationID, []*key) {
	s.Helper()
	home := s.organization
	defer func() { s.organization = home }()
	s.seed(func(ctx context.Context, c *store.Change) error {
		s.organization = authz.NewOrganizationID(c.Now())
		return c.AddOrganization(ctx, &authz.Organization{ID: s.organization, Name: name, Plan: "standard"})
	})
	return s.organization, s.addKeys(n, plenty())
}

// createKey makes a key by management: one that reads tickets and reaches no limit, but
// for what change does to it.
func (s *site) createKey(on *replica, organization string, change func(*admin.KeyCreate)) *key {
	s.Helper()
	limit := plenty()
	wanted := admin.KeyCreate{
		Name: "k", Environment: admin.Live, Scopes: []string{"tickets:read"},
		RateLimit: &admin.Rate{Rate: limit.Rate, PeriodSeconds: int(limit.Period.Seconds()), Burst: limit.Burst},
	}
	if change != nil {
		change(&wanted)
	}
	made, err := s.management(on).CreateKey(s.Context(), organization, wanted)
	if err != nil {
		s.Fatal(err)
	}
	k := s.newKey(authz.NewSecret(*made.Secret))
	k.stored = true
	if err := k.id.UnmarshalText([]byte(made.Key.ID)); err != nil {
		s.Fatal(err)
	}
	return k
}

// deniedSince marks a key as denied from a receipt on, and on replicas that it names as
// silent from when it says.
func (k *key) deniedSince(receipt *admin.Effective) {
	at := time.Now()
	if receipt != nil {
		for _, silent := range receipt.Silent {
			if silent.ServesUntil != nil && silent.ServesUntil.After(at) {
				at = *silent.ServesUntil
			}
		}
	}
	k.denied.Store(&at)
}

// once asks each replica once for each key, with the request that the key has.
func (s *site) once(replicas []*replica, keys ...*key) answers {
	s.Helper()
	var all answers
	for _, r := range replicas {
		all = append(all, s.run(plan{to: []*replica{r}, keys: keys, rate: 200, connections: 1})...)
	}
	return all
}
