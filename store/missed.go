package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// missedPage is how many keys are read at a time: a page takes some 10 ms, and well under 1 MB.
	missedPage = 2000
	// missedPause is kept between two pages, so that other statements have their turn, missedRetry
	// after one that failed.
	missedPause = 10 * time.Millisecond
	missedRetry = time.Second
)

// missed is what a replica has yet to learn of changes that were too many to be read when they
// were applied. Whatever is in memory was forgotten then, so that no answer waits for it: it
// matters when the database is put back. Safe for concurrent use.
type missed struct {
	mu sync.Mutex
	// open tells that there is something: keys behind after that have changed after revision since.
	open  bool
	since int64
	after authz.KeyID
	// again tells that one more pass is due, of what changed after revision then.
	again bool
	then  int64
	// pass tells one from the next.
	pass int
	wake chan struct{}
}

func newMissed() *missed { return &missed{wake: make(chan struct{}, 1)} }

// note notes that whatever changed after a revision is to be learned.
func (m *missed) note(since int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.open:
		m.begin(since)
	case !m.again: // keys that the pass under way is past may be among them
		m.again, m.then = true, since
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *missed) begin(since int64) {
	m.open, m.since, m.after, m.again = true, since, authz.KeyID{}, false
	m.pass++
}

// next tells where to read on, in which pass.
func (m *missed) next() (since int64, after authz.KeyID, pass int, open bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since, m.after, m.pass, m.open
}

// done notes that a page of a pass is learned; a zero last tells that it was the end.
func (m *missed) done(pass int, last authz.KeyID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case pass != m.pass || !m.open: // the database was put back meanwhile
	case !last.IsZero():
		m.after = last
	case m.again:
		m.begin(m.then)
	default:
		m.open = false
	}
}

// drop forgets it, and tells whether there was anything.
func (m *missed) drop() (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was, m.open = m.open, false
	return was
}

// learnMissed learns in the background, page by page, until ctx ends.
func (s *Store) learnMissed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.missed.wake:
		}
		for open := true; open; {
			pause := missedPause
			var err error
			if open, err = s.learnPage(ctx); err != nil {
				pause = missedRetry // and from where it was
				s.log.Debug("what was revoked in a mass cannot be read yet", slog.Any("error", err))
			}
			wait := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				wait.Stop()
				return
			case <-wait.C:
			}
		}
	}
}

// learnPage learns one page and tells whether there may be more.
func (s *Store) learnPage(ctx context.Context) (more bool, err error) {
	since, after, pass, open := s.missed.next()
	if !open {
		return false, nil
	}
	page, err := s.source.missed(ctx, since, after)
	if err != nil {
		return true, err
	}
	s.keys.learn(page.keys, page.organizations)
	s.missed.done(pass, page.last)
	return true, nil
}

// missedKeys are some of the keys that changed, behind one and up to another.
type missedKeys struct {
	keys []changedKey
	// organizations come with the first keys.
	organizations []changedOrganization
	// last is the last key that was looked at; zero is the end.
	last authz.KeyID
}

// missedSQL looks at $3 keys behind $2, changed after revision $1 or not: whatever the planner
// thinks of them, and however many others there are, a page takes the same time.
const missedSQL = `
WITH page AS MATERIALIZED (
	SELECT id, revision, revoked_at FROM api_keys
	WHERE id > COALESCE($2::uuid, '00000000-0000-0000-0000-000000000000') ORDER BY id LIMIT $3
)
SELECT l.id AS last_id, x.* FROM (SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS id) l LEFT JOIN (
	SELECT k.id AS key_id, s.id AS secret_id, k.revision, ` + revokedKeyAt + `, ` + revokedSecretAt + `
	FROM page k CROSS JOIN LATERAL (SELECT id, revoked_at FROM key_secrets WHERE key_id = k.id OFFSET 0) s
	WHERE k.revision > $1
) x ON true`

// missed reads on management's connections: what has changed since must not wait for it.
func (p postgres) missed(ctx context.Context, since int64, after authz.KeyID) (*missedKeys, error) {
	ctx, cancel := context.WithTimeout(ctx, manageReadDeadline)
	defer cancel()
	page := &missedKeys{}
	if after.IsZero() {
		var organizations []changeRow
		err := p.manage.SelectContext(ctx, &organizations, `
			SELECT id AS organization_id, revision, true AS suspended FROM organizations
			WHERE revision > $1 AND (suspended_at IS NOT NULL OR deleted_at IS NOT NULL) LIMIT $2`, since, maxChanges)
		if err != nil {
			return nil, translate("read which organizations were suspended", err)
		}
		for i := range organizations {
			o := &organizations[i]
			page.organizations = append(page.organizations, changedOrganization{o.OrganizationID, o.Revision.Int64, o.Suspended.Bool})
		}
	}
	var rows []struct {
		changeRow

		LastID authz.KeyID `db:"last_id"`
	}
	if err := p.manage.SelectContext(ctx, &rows, missedSQL, since, after, missedPage); err != nil {
		return nil, translate("read what was revoked", err)
	}
	for i := range rows {
		page.last = rows[i].LastID
		if !rows[i].KeyID.IsZero() {
			page.keys = append(page.keys, rows[i].key(authz.Digest{}))
		}
	}
	return page, nil
}
