package store_test

import (
	"context"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// link is a connection to Postgres that can fall silent: nothing comes through, and nothing is
// closed, as of a server that is stuck or a machine that is cut off.
type link struct {
	*toxiproxy.Proxy

	url string
}

func newLink(t *testing.T, at string) *link {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "postgres", "127.0.0.1:0", u.Host)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	u.Host = p.Listen
	return &link{p, u.String()}
}

// silence has nothing come through from now on.
func (l *link) silence(t *testing.T) {
	t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		if _, err := l.Toxics.AddToxicJson(strings.NewReader(`{"name":"` + stream + `","type":"timeout","stream":"` + stream + `","attributes":{"timeout":0}}`)); err != nil {
			t.Fatal(err)
		}
	}
}

// A replica that stands still in a change, or is cut off in it, holds the revision's row lock: the
// others wait for some seconds, and go on. What it had begun is not done.
func TestChange_WhoeverStandsStillInOneStopsNobodyElse(t *testing.T) {
	t.Parallel()
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	w := newWhole(t, here, "acme")
	holds, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := there.Write(t.Context(), true, func(context.Context, manage.Writer) error {
			close(holds)
			<-goOn
			return nil
		})
		ended <- err
	}()
	<-holds
	if n := revoke(t, here, w); n == 0 {
		t.Error("not revoked")
	}
	close(goOn)
	if err := <-ended; authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("the change that stood still: %v", err)
	}
}

// When Postgres falls silent while a receipt is waited for, who was silent before is named.
func TestEffective_IsToldWhenPostgresFallsSilentMeanwhile(t *testing.T) {
	t.Parallel()
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	l := newLink(t, at)
	here := storetest.Open(t, l.url, peppers)
	storetest.Open(t, at, peppers)
	n := revoke(t, here, newWhole(t, here, "acme"))
	told := make(chan struct{})
	go func() {
		defer close(told)
		e, err := here.Effective(t.Context(), n+1) // which nobody has applied
		if err != nil || len(e.Silent) != 2 || e.Replicas != 2 || e.Acknowledged != 0 {
			t.Errorf("%+v, %v", e, err)
		}
	}()
	<-time.After(200 * time.Millisecond)
	l.silence(t)
	select {
	case <-told:
	case <-time.After(15 * time.Second):
		t.Error("nothing is told")
		<-told
	}
}

// Who an admin is, is told soon or not at all: management answers also when Postgres is stuck.
func TestFindAdmin_IsUnavailableSoonWhenPostgresIsStuck(t *testing.T) {
	t.Parallel()
	l := newLink(t, storetest.Migrated(t))
	s := storetest.Open(t, l.url, storetest.Peppers(t, "p1"))
	hash := authz.AdminTokens().Generate().Hash()
	if a, err := s.FindAdmin(t.Context(), hash); a != nil || err != nil {
		t.Fatal(a, err)
	}
	l.silence(t)
	told := make(chan error, 1)
	go func() {
		_, err := s.FindAdmin(t.Context(), hash)
		told <- err
	}()
	select {
	case err := <-told:
		if authz.KindOf(err) != authz.KindUnavailable {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is told")
		<-told
	}
}

// A store ends within some ten seconds also when Postgres is stuck, and what it has counted is
// kept by then: a service that is asked to end has half a minute, and is killed after that.
func TestStore_EndsInTimeAndKeepsUsageWhenPostgresIsStuck(t *testing.T) {
	t.Parallel()
	at, dir := storetest.Migrated(t), filepath.Join(t.TempDir(), "state")
	l := newLink(t, at)
	s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, l.url), Peppers: storetest.Peppers(t, "p1"), SpillDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	add(t, s)
	l.silence(t)
	c := newCounter(s, 5)
	for i := range 40 {
		c.count(t, i%5, "/api/v1/tickets/{id}", "/api/v1/tickets/1", time.Now())
	}
	<-time.After(2 * time.Second) // a writing is under way, and a poll
	ended := make(chan error, 1)
	go func() { ended <- s.Close() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(25 * time.Second):
		t.Error("it does not end")
		<-ended
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*.usage.json"))
	if h := s.Health(); err != nil || len(kept) != 1 || h.DroppedUsage != 0 {
		t.Errorf("kept %v, %v; %+v", kept, err, h)
	}
}
