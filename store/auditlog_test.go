package store_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

func event(c manage.Writer, chain authz.OrganizationID, sequence int64) manage.AuditEvent {
	e := manage.AuditEvent{
		ID: authz.NewEventID(c.Now()), Chain: chain, Sequence: sequence, At: c.Now(), Revision: c.Revision(), ActorType: "admin",
		ActorID: "admin_x", Action: "keys.create", Target: fmt.Sprint("key_", sequence%2), KeyID: "k1",
		MAC: bytes.Repeat([]byte{byte(sequence)}, 32),
	}
	if sequence > 1 {
		e.PreviousMAC = bytes.Repeat([]byte{byte(sequence - 1)}, 32)
	}
	return e
}

// A row's MAC is over its very bytes, so they come back as they were.
func TestAuditLog_RowsComeBackByteForByte(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	var want []manage.AuditEvent
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		for i, address := range []string{"", "203.0.113.7", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0"} {
			e := event(c, w.organization.ID, int64(i+1))
			e.Address, _ = netip.ParseAddr(address)
			want = append(want, e)
		}
		want[1].Before, want[1].RequestID = []byte(`{"z":1,  "a":"<\u003c\u0000 é 漢","z":1.10}`), `r"\'`
		want[2].After = []byte(`{ }`)
		return c.AppendAudit(ctx, want)
	})
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		got, err := r.AuditEvents(ctx, of(w.organization.ID), w.organization.ID, manage.AuditFilter{OldestFirst: true, Limit: 10})
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		return err
	})
}

func TestAuditLog_ChainsArePagedAndHaveHeads(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w, other := newWhole(t, s, "acme"), newWhole(t, s, "globex")
	chains := []authz.OrganizationID{w.organization.ID, other.organization.ID, {}}
	for i, chain := range chains {
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
			if head, err := c.AuditHead(ctx, chain); err != nil || !reflect.DeepEqual(head, manage.ChainHead{}) {
				t.Errorf("a new chain: %+v, %v", head, err)
			}
			var events []manage.AuditEvent
			for n := range 10 + i {
				events = append(events, event(c, chain, int64(n+1)))
			}
			if err := c.AppendAudit(ctx, events); err != nil {
				return err
			}
			head, err := c.AuditHead(ctx, chain)
			if head.Chain != chain || head.Sequence != int64(10+i) || head.Revision != c.Revision() || head.MAC[0] != byte(10+i) {
				t.Errorf("%+v", head)
			}
			return err
		})
	}
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		heads, err := r.AuditChains(ctx, all())
		if err != nil || len(heads) != 3 {
			t.Errorf("%d chains, %v", len(heads), err)
		}
		for _, h := range heads {
			if h.Sequence != 10 && h.Sequence != 11 && h.Sequence != 12 {
				t.Errorf("%+v", h)
			}
		}
		if heads, err := r.AuditChains(ctx, of(w.organization.ID)); err != nil || len(heads) != 1 || heads[0].Chain != w.organization.ID {
			t.Errorf("%+v, %v", heads, err)
		}
		for i, chain := range chains {
			for _, oldest := range []bool{true, false} {
				f := manage.AuditFilter{OldestFirst: oldest, Limit: 4}
				var seen []int64
				for {
					events, err := r.AuditEvents(ctx, all(), chain, f)
					if err != nil {
						return err
					}
					for _, e := range events {
						seen, f.After = append(seen, e.Sequence), e.Sequence
					}
					if len(events) < f.Limit {
						break
					}
				}
				if len(seen) != 10+i || oldest != (seen[0] == 1) {
					t.Errorf("chain %d, oldest first %t: %v", i, oldest, seen)
				}
			}
		}
		filtered, err := r.AuditEvents(ctx, all(), w.organization.ID, manage.AuditFilter{Action: "keys.create", Target: "key_1", Limit: 10})
		if len(filtered) != 5 {
			t.Errorf("%d rows about one target", len(filtered))
		}
		return err
	})
}

// A row that was meddled with comes out, whatever stands in it: else nobody would find it.
func TestAuditLog_ATimeThatIsNoneComesOut(t *testing.T) {
	for _, at := range []string{"infinity", "-infinity", "20000-01-01", "0044-03-15 BC"} {
		url := storetest.Migrated(t)
		s := storetest.Open(t, url, storetest.Peppers(t, "p1"))
		w := newWhole(t, s, "acme")
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
			return c.AppendAudit(ctx, []manage.AuditEvent{event(c, w.organization.ID, 1), event(c, w.organization.ID, 2)})
		})
		storetest.Exec(t, url, `UPDATE audit_log SET at = $1 WHERE sequence = 1`, at)
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			events, err := r.AuditEvents(ctx, all(), w.organization.ID, manage.AuditFilter{OldestFirst: true, Limit: 10})
			if len(events) != 2 || !events[0].At.IsZero() || events[1].At.IsZero() {
				t.Errorf("at %s: %+v", at, events)
			}
			return err
		})
	}
}
