package store_test

import (
	"context"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// slowLink passes connections on to Postgres, and what clients send later by delay.
type slowLink struct {
	address string
	delay   atomic.Int64
}

func newSlowLink(t *testing.T, target string) *slowLink {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &slowLink{address: listener.Addr().String()}
	var group sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		group.Wait()
	})
	group.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				group.Go(func() {
					defer func() { _, _ = client.Close(), server.Close() }()
					buffer := make([]byte, 64<<10)
					for {
						n, err := pair[0].Read(buffer)
						if err != nil {
							return
						}
						if pair[0] == client {
							<-time.After(time.Duration(l.delay.Load()))
						}
						if _, err := pair[1].Write(buffer[:n]); err != nil {
							return
						}
					}
				})
			}
		}
	})
	return l
}

// A Postgres that answers late is not one that is away: changes arrive all the same.
func TestStore_ASlowPostgresIsNotTakenForOneThatIsAway(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	link := newSlowLink(t, u.Host)
	u.Host = link.address
	here := storetest.Open(t, at, peppers)
	there, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, u.String()), Peppers: peppers})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	k := add(t, here)
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 100 { // the budget is the real one, and the machine may be busy
		if _, err = there.FindKey(t.Context(), authz.CallerID{}, k.secret.Hash()); err == nil {
			break
		}
	}
	if find(t, there, k.secret).Key == nil {
		t.Fatal("unknown")
	}
	link.delay.Store(int64(250 * time.Millisecond))
	n := write(t, here, func(ctx context.Context, c *store.Change) error {
		return c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID)
	})
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatalf("a slow answer is taken for none: %v", err)
	}
	if h := there.Health(); h.Revision < n || h.Degraded {
		t.Errorf("%+v, want revision %d", h, n)
	}
	if found, err := there.FindKey(t.Context(), authz.CallerID{}, k.secret.Hash()); err == nil && found.Key.RevokedAt.IsZero() {
		t.Error("a revoked key is served")
	}
	link.delay.Store(0)
}
