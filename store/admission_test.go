package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
	"github.com/supportstation/keystile/store/storetest"
)

// ownPostgres is a Postgres that a test may stop and start again.
type ownPostgres struct {
	options localserver.PostgresOptions
	server  *localserver.Postgres
}

func newOwnPostgres(t *testing.T) *ownPostgres {
	t.Helper()
	dir, err := os.MkdirTemp("", "keystile-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	p := &ownPostgres{options: localserver.PostgresOptions{Dir: filepath.Join(dir, "postgres"), Password: "tests", FsyncOff: true}}
	t.Cleanup(func() {
		p.stop(t)
		_ = os.RemoveAll(dir)
	})
	p.start(t)
	return p
}

func (p *ownPostgres) start(t *testing.T) {
	t.Helper()
	var err error
	if p.server, err = localserver.StartPostgres(context.WithoutCancel(t.Context()), p.options); err != nil {
		t.Fatal(err)
	}
	p.options.Port = p.server.Port()
}

func (p *ownPostgres) stop(t *testing.T) {
	t.Helper()
	if err := p.server.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func (p *ownPostgres) url() string { return p.server.URL("postgres") }

func TestOpen_APostgresThatIsAwayIsWaitedFor(t *testing.T) {
	p := newOwnPostgres(t)
	at, peppers := p.url(), storetest.Peppers(t, "p1")
	if _, _, err := store.Migrate(t.Context(), storetest.Parse(t, at)); err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, at, peppers)
	k, caller := add(t, s), newCaller(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	p.stop(t)

	s = storetest.Open(t, at, peppers)
	if h := s.Health(); h.Known || !h.Degraded {
		t.Errorf("health is %+v", h)
	}
	if found, err := s.FindKey(t.Context(), authz.CallerID{}, k.secret.Hash()); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("a key: %+v, %v", found, err)
	}
	if c, err := s.FindCaller(t.Context(), caller.token.Hash()); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("a caller: %+v, %v", c, err)
	}
	if _, err := s.Change(t.Context(), func(context.Context, *store.Change) error { return nil }); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("a change: %v", err)
	}
	if _, err := s.FindAdmin(t.Context(), authz.AdminTokens().Generate().Hash()); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("an admin: %v", err)
	}
	p.start(t)
	eventually(t, "the key is found", func() bool {
		found, err := s.FindKey(t.Context(), authz.CallerID{}, k.secret.Hash())
		return err == nil && found.Key != nil && !found.Degraded
	})
	if c, err := s.FindCaller(t.Context(), caller.token.Hash()); err != nil || c == nil {
		t.Errorf("the caller: %+v, %v", c, err)
	}
	add(t, s)
}

// A database that does not fit is refused also when it came late, and nothing of it is
// believed.
func TestOpen_ADatabaseThatComesLateAndDoesNotFitIsRefused(t *testing.T) {
	p := newOwnPostgres(t)
	at := p.url()
	if _, _, err := store.Migrate(t.Context(), storetest.Parse(t, at)); err != nil {
		t.Fatal(err)
	}
	with := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	caller := newCaller(t, with)
	if err := with.Close(); err != nil {
		t.Fatal(err)
	}
	p.stop(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p2"))
	p.start(t)
	select {
	case err := <-s.Refused():
		var wrong *store.PepperError
		if !errors.As(err, &wrong) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it is not refused")
	}
	if c, err := s.FindCaller(t.Context(), caller.token.Hash()); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("a caller: %+v, %v", c, err)
	}
}

func TestOpen_WhatIsWronglyConfiguredIsRefusedAtOnce(t *testing.T) {
	at := storetest.Migrated(t)
	u := storetest.Server(t).UserURL("postgres", "nobody", "wrong")
	for name, url := range map[string]string{"a wrong name": u, "another database": storetest.Server(t).URL("nowhere")} {
		s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, url), Peppers: storetest.Peppers(t, "p1")})
		if err == nil {
			_ = s.Close()
			t.Errorf("%s: it opens", name)
		}
	}
	_ = at
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
		<-time.After(10 * time.Millisecond)
	}
}
