package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// massSource is a database in which more has changed than one synchronization reads.
type massSource struct {
	source

	n     int64
	pages func(since int64, after authz.KeyID) (*missedKeys, error)
}

func (m *massSource) changes(context.Context, int64) (*changeSet, error) {
	return &changeSet{n: m.n, mark: "m", markThen: "m", now: time.Now(), live: 1, everything: m.n > 1}, nil
}

func (m *massSource) missed(_ context.Context, since int64, after authz.KeyID) (*missedKeys, error) {
	return m.pages(since, after)
}
func (*massSource) admins(context.Context, int64) ([]readAdmin, error) { return nil, nil }
func (*massSource) callers(context.Context) (callerTable, error)       { return callerTable{}, nil }
func (*massSource) formats(context.Context) (*[]authz.ForeignFormat, error) {
	return &[]authz.ForeignFormat{}, nil
}
func (*massSource) policy(context.Context) (*Policy, error)       { return &Policy{}, nil }
func (*massSource) shadow(context.Context) (*PolicyShadow, error) { return nil, nil } //nolint:nilnil // none
func (*massSource) beat(context.Context, heartbeat, bool) error   { return nil }

// newMass is a replica that knows one key, and then hears that very much has changed.
func newMass(t *testing.T) (s *Store, from *massSource, known authz.Digest) {
	t.Helper()
	peppers, err := authz.ParsePeppers(authz.NewPepper("p1"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err = newStore(Options{Peppers: peppers}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.keys.close)
	from = &massSource{n: 1}
	s.follows(from, DefaultLookupBudget)
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := authz.NewOrganizationID(time.Now())
	known, e := entryOf(1, s.keys.organizations.organization(id), &authz.Organization{ID: id})
	if _, ok := s.keys.put(known, e); !ok || s.keys.get(known) == nil {
		t.Fatal("the key is not known")
	}
	from.n = 9
	return s, from, known
}

// However much was revoked, a replica serves nothing of before and says that it has applied it,
// before it has read what it was.
func TestSynchronize_AMassRevocationIsAppliedBeforeItIsRead(t *testing.T) {
	s, from, known := newMass(t)
	from.pages = func(int64, authz.KeyID) (*missedKeys, error) {
		t.Error("a synchronization reads what was revoked in a mass")
		return nil, errSimulated
	}
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.keys.get(known) != nil || s.applied.Load() != 9 {
		t.Errorf("%+v is served at revision %d", s.keys.get(known), s.applied.Load())
	}
}

// Whatever fails in between, every page is learned, from where it was; and what comes in a mass
// meanwhile is read in one more pass.
func TestLearnMissed_APageThatFailsIsReadAgainAndNoneIsLeftOut(t *testing.T) {
	s, from, _ := newMass(t)
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	const pages = 4
	ids := make([]authz.KeyID, pages)
	for i := range ids {
		ids[i] = authz.NewKeyID(time.Unix(int64(1_800_000_000+i), 0))
	}
	var asked []string
	failed := false
	from.pages = func(since int64, after authz.KeyID) (*missedKeys, error) {
		at := slices.Index(ids, after) + 1
		asked = append(asked, fmt.Sprint(since, "/", at))
		if at == 2 && !failed {
			failed = true
			from.n = 20
			if err := s.Synchronize(t.Context()); err != nil { // nor does it wait for what fails
				t.Error(err)
			}
			return nil, errSimulated
		}
		if at == pages {
			return &missedKeys{}, nil
		}
		return &missedKeys{last: ids[at], keys: []changedKey{{
			id: ids[at], secret: authz.NewSecretID(time.Now()), revision: 9, keyRevoked: unixOf(time.Unix(5, 0)),
		}}}, nil
	}
	for more := true; more; {
		more, _ = s.learnPage(t.Context())
	}
	for i, id := range ids {
		if at, _ := s.keys.learned.revoked.get(id); at != 5 {
			t.Errorf("page %d is not learned", i)
		}
	}
	if want := []string{"1/0", "1/1", "1/2", "1/2", "1/3", "1/4", "9/0", "9/1", "9/2", "9/3", "9/4"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
}
