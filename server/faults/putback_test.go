package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/sdk/admin"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
)

// goneOn is how many changes a restored database takes before a replica connects to it:
// more than were made since the copy, so that its revision is beyond theirs.
const goneOn = 60

// oldCopy puts an old copy of the database in the place of the current one: as it is, and
// again after it has gone on by itself.
func oldCopy(t *trial) {
	s := newSite(t)
	keys := s.addKeys(24, plenty())
	replicas := s.start(3)
	s.warm(replicas, keys)
	for round, later := range []int{0, goneOn} {
		s.restore(replicas, keys[2*round:2*round+2], keys[4:], round, later)
	}
}

// restore is one round: copy, changes, the copy in place. The two spare ones are revoked
// afterwards: as soon as that can be, and when all have noticed.
func (s *site) restore(replicas []*replica, spares []*key, keys []*key, round, later int) {
	s.Helper()
	spare, name := spares[1], "an old copy restored"
	if later > 0 {
		name = fmt.Sprintf("failed over to one that then took %d changes", later)
	}
	v := s.newVictims(replicas[0])
	s.eventually("all are allowed", func() bool { return s.once(replicas, v.all()...).except("allowed") == nil })
	l := s.startLoad(plan{to: replicas, keys: slices.Concat(v.all(), keys, spares), rate: either(s.trial, 300, 60), connections: 12})
	dir := s.copyPostgres(round)
	made := v.take(replicas)
	s.eventually("what is taken away is denied everywhere", func() bool { return s.once(replicas, v.all()...).allowed() == 0 })
	exports := s.exportAuditLog(replicas[0], v.organization)

	s.replacePostgres(dir, round, later)
	s.judgeFirstReceipt(replicas, name, spares[0])
	noticed := within(patience, func() bool {
		return !slices.ContainsFunc(replicas, func(r *replica) bool { return r.metric(s.trial, "keystile_store_put_back_total") < float64(round+1) })
	})
	s.exact(noticed, "%s: every replica tells it: keystile_store_put_back_total %d", name, round+1)
	s.exact(s.inEveryLog(replicas, "the database was put back to an earlier state"), "and in its log")
	pause(either(s.trial, 2*time.Second, 300*time.Millisecond))
	after := s.once(replicas, v.all()...)
	s.exact(after.allowed() == 0, "what was taken away before, on 3 replicas: %v", after)
	late := s.once(replicas, made)
	s.exact(len(late.except("allowed", "key_unknown")) == 0, "a key that the copy lacks: %v", late)

	fresh := s.createKey(replicas[1], s.organization.String(), nil)
	s.exact(within(patience, func() bool { return s.once(replicas, fresh).except("allowed") == nil }), "a new key is allowed on 3 replicas")
	change, err := s.management(replicas[2]).RevokeKey(s.Context(), spare.id.String())
	if err != nil {
		s.exact(false, "a new revocation: %v", err)
		return
	}
	spare.deniedSince(change.Effective)
	denied := func() bool { return s.once(replicas, spare).except("key_revoked") == nil }
	s.exact(within(patience, denied), "a new revocation is denied on 3 replicas; its receipt: %d of %d", change.Effective.Acknowledged, change.Effective.Replicas)
	wrong := l.stop().where(func(a *answer) bool {
		d := a.key.denied.Load()
		return d != nil && a.allow && a.sent.After(*d)
	})
	s.exact(len(wrong) == 0, "wrong allows: %d of %d checks, from the copy to the end", len(wrong), len(l.soFar()))
	s.judgeDoctor(v, exports)
	v.again(s.management(replicas[0]))
	restarted := s.start(1)
	s.exact(s.once(restarted, v.all()...).allowed() == 0, "when what the doctor lists is done again, a replica that starts afresh denies it all")
	if err := restarted[0].terminate(); err != nil {
		s.Error(err)
	}
}

// judgeFirstReceipt revokes a key as soon as a database that was put back takes a change:
// its receipt counts, or names, every replica, whether or not they are in that database.
func (s *site) judgeFirstReceipt(replicas []*replica, name string, k *key) {
	s.Helper()
	var receipt *admin.Effective
	revoked := within(patience, func() bool {
		change, err := s.management(replicas[0]).RevokeKey(s.Context(), k.id.String())
		if err == nil {
			receipt = change.Effective
		}
		return err == nil
	})
	if !revoked || receipt == nil {
		s.exact(false, "%s: a revocation is not possible, or has no receipt", name)
		return
	}
	k.deniedSince(receipt)
	s.exact(receipt.Replicas >= len(replicas), "%s: the first receipt: %d of %d replicas after %d ms", name, receipt.Acknowledged, receipt.Replicas, receipt.WithinMs)
}

// victims are keys from which something is taken after the copy.
type victims struct {
	*site

	revoked, disabled, narrowed, rotated, suspended, byCaller *key
	organization, caller                                      string
	// targets are what the changes were about, by action.
	targets map[string][]string
}

func (v *victims) all() []*key {
	return []*key{v.revoked, v.disabled, v.narrowed, v.rotated, v.suspended, v.byCaller}
}

func (s *site) newVictims(on *replica) *victims {
	s.Helper()
	home := s.organization.String()
	v := &victims{
		site: s, revoked: s.createKey(on, home, nil), disabled: s.createKey(on, home, nil), narrowed: s.createKey(on, home, nil),
		rotated: s.createKey(on, home, nil), organization: s.newOrganization(on, "Globex"), targets: map[string][]string{},
	}
	v.suspended = s.createKey(on, v.organization, nil)
	made, err := s.management(on).CreateCaller(s.Context(), admin.CallerCreate{
		Name: v.organization, Environments: []admin.Environment{admin.Live},
	})
	if err != nil {
		s.Fatal(err)
	}
	v.caller = made.Caller.ID
	v.byCaller = s.createKey(on, home, nil)
	token := authz.NewSecret(*made.Secret)
	s.keep(token)
	v.byCaller.request = []byte(strings.Replace(string(v.byCaller.request), s.caller.Reveal(), token.Reveal(), 1))
	return v
}

// take takes something from each, on one replica after the other, and makes a key.
func (v *victims) take(replicas []*replica) (made *key) {
	v.Helper()
	for i, change := range v.takings() {
		receipt, err := change.do(v.management(replicas[i%len(replicas)]))
		if err != nil {
			v.Fatalf("%s: %v", change.action, err)
		}
		change.key.deniedSince(receipt)
		v.targets[change.action] = append(v.targets[change.action], change.target)
	}
	made = v.createKey(replicas[0], v.site.organization.String(), nil)
	v.targets["keys.create"] = []string{made.id.String()}
	return made
}

// taking takes something from a key.
type taking struct {
	action, target string
	key            *key
	do             func(*admin.Client) (*admin.Effective, error)
}

func (v *victims) takings() []taking {
	ctx, yes, other := v.Context(), true, []string{"customers:read"}
	ofKey := func(c *admin.KeyChange, err error) (*admin.Effective, error) {
		if err != nil {
			return nil, err
		}
		if c.Secret != nil {
			v.keep(authz.NewSecret(*c.Secret))
		}
		return c.Effective, nil
	}
	of := func(action string, k *key, do func(*admin.Client) (*admin.KeyChange, error)) taking {
		return taking{action, k.id.String(), k, func(c *admin.Client) (*admin.Effective, error) { return ofKey(do(c)) }}
	}
	return []taking{
		of("keys.revoke", v.revoked, func(c *admin.Client) (*admin.KeyChange, error) { return c.RevokeKey(ctx, v.revoked.id.String()) }),
		of("keys.update", v.disabled, func(c *admin.Client) (*admin.KeyChange, error) {
			return c.UpdateKey(ctx, v.disabled.id.String(), admin.KeyUpdate{Disabled: &yes})
		}),
		of("keys.update", v.narrowed, func(c *admin.Client) (*admin.KeyChange, error) {
			return c.UpdateKey(ctx, v.narrowed.id.String(), admin.KeyUpdate{Scopes: &other})
		}),
		of("keys.rotate", v.rotated, func(c *admin.Client) (*admin.KeyChange, error) {
			return c.RotateKey(ctx, v.rotated.id.String(), admin.KeyRotate{})
		}),
		{"organizations.update", v.organization, v.suspended, func(c *admin.Client) (*admin.Effective, error) {
			change, err := c.UpdateOrganization(ctx, v.organization, admin.OrganizationUpdate{Suspended: &yes})
			if err != nil {
				return nil, err
			}
			return change.Effective, nil
		}},
		{"callers.delete", v.caller, v.byCaller, func(c *admin.Client) (*admin.Effective, error) {
			change, err := c.DeleteCaller(ctx, v.caller)
			if err != nil {
				return nil, err
			}
			return change.Effective, nil
		}},
	}
}

// again takes the same away once more: what an operator does with the doctor's list.
func (v *victims) again(c *admin.Client) {
	v.Helper()
	for _, change := range v.takings() {
		if _, err := change.do(c); err != nil {
			v.exact(false, "again %s: %v", change.action, err)
		}
	}
}

// copyPostgres takes a copy of the running server's data, as operators do.
func (s *site) copyPostgres(n int) (dir string) {
	s.Helper()
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.postgres.PID()))
	if err != nil {
		s.Fatal(err)
	}
	dir = filepath.Join(s.dir, fmt.Sprintf("copy-%d", n))
	if err := os.Mkdir(dir, 0o711); err != nil {
		s.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	cmd := exec.CommandContext(s.Context(), filepath.Join(filepath.Dir(program), "pg_basebackup"), "-D", data, "-h", "127.0.0.1",
		"-p", strconv.Itoa(s.postgres.Port()), "-U", localserver.Superuser, "--checkpoint=fast", "--no-sync")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	if said, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("copy Postgres' data: %v\n%s", err, said)
	}
	s.giveLike(data, filepath.Join(s.dir, "postgres", "data"))
	return dir
}

// giveLike gives a directory and all in it to the owner of another.
func (s *site) giveLike(dir, other string) {
	s.Helper()
	info, err := os.Stat(other)
	if err != nil {
		s.Fatal(err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		s.Fatal("the owner of a file is not known here")
	}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(owner.Uid), int(owner.Gid)))
	})
	if err != nil {
		s.Fatal(err)
	}
}

// replacePostgres stops Postgres and starts it with a copy of its data, after that has
// taken some changes elsewhere.
func (s *site) replacePostgres(dir string, n, changes int) {
	s.Helper()
	s.killPostgres()
	s.goOn(dir, changes)
	current := filepath.Join(s.dir, "postgres")
	if err := errors.Join(os.Rename(current, filepath.Join(s.dir, fmt.Sprintf("lost-%d", n))), os.Rename(dir, current)); err != nil {
		s.Fatal(err)
	}
	s.startPostgres()
	s.note("the copy is in place")
}

// goOn has a copy forget the replicas, as one from before they were started, and take changes
// where no replica finds it.
func (s *site) goOn(dir string, changes int) {
	s.Helper()
	elsewhere, err := localserver.StartPostgres(s.Context(), localserver.PostgresOptions{Dir: dir, Password: password, FsyncOff: true})
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = elsewhere.Stop(s.Context()) }()
	forget, err := sqlx.ConnectContext(s.Context(), "postgres", elsewhere.URL("postgres"))
	if err != nil {
		s.Fatal(err)
	}
	_, err = forget.ExecContext(s.Context(), `DELETE FROM replicas`)
	if err := errors.Join(err, forget.Close()); err != nil {
		s.Fatal(err)
	}
	if changes == 0 {
		return
	}
	at, err := store.ParseDatabaseURL(elsewhere.URL("postgres"))
	if err != nil {
		s.Fatal(err)
	}
	other, err := store.Open(s.Context(), store.Options{URL: at, Peppers: s.peppers})
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for range changes {
		if _, err := other.Change(s.Context(), func(ctx context.Context, c *store.Change) error {
			return c.AddOrganization(ctx, &authz.Organization{ID: authz.NewOrganizationID(c.Now()), Name: "Later", Plan: "standard"})
		}); err != nil {
			s.Fatal(err)
		}
	}
}

// inEveryLog tells whether each replica has logged a text.
func (s *site) inEveryLog(replicas []*replica, text string) bool {
	s.Helper()
	for _, r := range replicas {
		raw, err := os.ReadFile(r.log)
		if err != nil {
			s.Fatal(err)
		}
		if !strings.Contains(string(raw), text) {
			return false
		}
	}
	return true
}
