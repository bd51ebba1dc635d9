package store

import (
	"context"
	"database/sql"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
)

// maxLearnedAdmins bounds the admins, and their tokens, that a replica surely remembers, some
// 2 MB; it reads no more at its start.
const maxLearnedAdmins = 10_000

// learnedAdmins is what a replica remembers of admins and their tokens, which each request
// reads anew: so that a database that is put back does not let a removed one in again. As of
// keys, an older row replaces no newer one, and revoked is for ever. Safe for concurrent use.
type learnedAdmins struct {
	mu     sync.Mutex
	admins notes[authz.AdminID, life]
	tokens notes[authz.SecretID, life] // by id: digests change with the pepper
}

// life is until when something may be used, as of a revision of its admin's row.
type life struct {
	revision         int64
	expires, revoked time.Time
}

func newLearnedAdmins() *learnedAdmins {
	return &learnedAdmins{
		admins: newNotes[authz.AdminID, life](maxLearnedAdmins), tokens: newNotes[authz.SecretID, life](maxLearnedAdmins),
	}
}

// within is what may be served of what was read, in the light of what is known.
func (l life) within(known life) life {
	if l.revoked.IsZero() {
		l.revoked = known.revoked
	}
	if l.revision < known.revision {
		l.expires = authz.Earlier(l.expires, known.expires)
	}
	return l
}

// noteLife remembers the newer one of what is known and what was read.
func noteLife[K comparable](n *notes[K, life], k K, read life) {
	known, _ := n.get(k)
	l := read.within(known)
	if l.revision = max(l.revision, known.revision); l != known {
		n.set(k, l)
	}
}

// readAdmin is an admin as it was read, with one of its tokens.
type readAdmin struct {
	authz.Admin

	revision int64
}

// learn remembers admins that have changed.
func (l *learnedAdmins) learn(changed []readAdmin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range changed {
		a := &changed[i]
		noteLife(&l.admins, a.ID, life{a.revision, a.ExpiresAt, a.RevokedAt})
		noteLife(&l.tokens, a.TokenID, life{a.revision, a.TokenExpiresAt, a.TokenRevokedAt})
	}
}

// judge turns what was read into what is believed, and remembers what it tells to have ended.
func (l *learnedAdmins) judge(a readAdmin) *authz.Admin {
	if !a.RevokedAt.IsZero() || !a.TokenRevokedAt.IsZero() {
		l.learn([]readAdmin{a})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.admins.get(a.ID); ok {
		is := life{a.revision, a.ExpiresAt, a.RevokedAt}.within(known)
		a.ExpiresAt, a.RevokedAt = is.expires, is.revoked
	}
	if known, ok := l.tokens.get(a.TokenID); ok {
		is := life{a.revision, a.TokenExpiresAt, a.TokenRevokedAt}.within(known)
		a.TokenExpiresAt, a.TokenRevokedAt = is.expires, is.revoked
	}
	return &a.Admin
}

func (l *learnedAdmins) forgotten() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.admins.forgotten + l.tokens.forgotten
}

// learnAdmins reads the admins that have changed after a revision, 0 for all, and remembers them.
func (s *Store) learnAdmins(ctx context.Context, since int64) error {
	changed, err := s.source.admins(ctx, since)
	if err == nil {
		s.admins.learn(changed)
	}
	return err
}

// admins are told the oldest first: of too many the newest are remembered.
func (p postgres) admins(ctx context.Context, since int64) ([]readAdmin, error) {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	var rows []struct {
		ID             authz.AdminID  `db:"id"`
		Revision       int64          `db:"revision"`
		ExpiresAt      sql.NullTime   `db:"expires_at"`
		RevokedAt      sql.NullTime   `db:"revoked_at"`
		TokenID        authz.SecretID `db:"token_id"`
		TokenExpiresAt sql.NullTime   `db:"token_expires_at"`
		TokenRevokedAt sql.NullTime   `db:"token_revoked_at"`
	}
	// What is revoked at a time that is none was revoked long ago.
	err := p.changing.SelectContext(ctx, &rows, `
		SELECT a.id, a.revision, t.id AS token_id, `+finite("a.expires_at", "expires_at")+`, `+finite("t.expires_at", "token_expires_at")+`,
			CASE WHEN isfinite(a.revoked_at) OR a.revoked_at IS NULL THEN a.revoked_at ELSE 'epoch' END AS revoked_at,
			CASE WHEN isfinite(t.revoked_at) OR t.revoked_at IS NULL THEN t.revoked_at ELSE 'epoch' END AS token_revoked_at
		FROM admins a JOIN admin_tokens t ON t.admin_id = a.id
		WHERE a.revision > $1 ORDER BY a.revision DESC LIMIT $2`, since, maxLearnedAdmins)
	changed := make([]readAdmin, len(rows))
	for i := range rows {
		r := &rows[i]
		changed[len(rows)-1-i] = readAdmin{authz.Admin{
			ID: r.ID, ExpiresAt: utc(r.ExpiresAt), RevokedAt: utc(r.RevokedAt),
			TokenID: r.TokenID, TokenExpiresAt: utc(r.TokenExpiresAt), TokenRevokedAt: utc(r.TokenRevokedAt),
		}, r.Revision}
	}
	return changed, translate("read the admins that have changed", err)
}
