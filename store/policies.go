package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// Policy is what the database has in force for all replicas.
type Policy struct {
	// Activation is nil while nothing was ever activated: the built-in one is in force.
	Activation *authz.PolicyActivation
	// Archive is the policy itself; nil for the built-in one.
	Archive []byte
}

// change is the number of its activation.
func (p *Policy) change() int64 {
	if p == nil || p.Activation == nil {
		return 0
	}
	return p.Activation.Change
}

const activationsSQL = `
SELECT n, COALESCE(policy_revision, '') AS policy_revision, at, activated_by, note, security_fix, rolled_back, accepted_tests
FROM policy_activations`

type activationRow struct {
	N              int64          `db:"n"`
	PolicyRevision string         `db:"policy_revision"`
	At             time.Time      `db:"at"`
	ActivatedBy    string         `db:"activated_by"`
	Note           string         `db:"note"`
	SecurityFix    bool           `db:"security_fix"`
	RolledBack     bool           `db:"rolled_back"`
	AcceptedTests  pq.StringArray `db:"accepted_tests"`
}

func (r activationRow) thing() (authz.PolicyActivation, error) { //nolint:unparam // what list asks for
	return authz.PolicyActivation{
		Change: r.N, Revision: r.PolicyRevision, At: r.At.UTC(), By: r.ActivatedBy, Note: r.Note,
		SecurityFix: r.SecurityFix, RolledBack: r.RolledBack, Accepted: r.AcceptedTests,
	}, nil
}

// readPolicy reads what is in force, of one snapshot.
func readPolicy(ctx context.Context, db *sqlx.DB) (*Policy, error) {
	var row struct {
		activationRow

		Archive []byte `db:"archive"`
	}
	err := db.GetContext(ctx, &row, `
		SELECT a.n, COALESCE(a.policy_revision, '') AS policy_revision, a.at, a.activated_by, a.note, a.security_fix,
			a.rolled_back, a.accepted_tests, p.archive
		FROM policy_activations a LEFT JOIN policies p ON p.revision = a.policy_revision ORDER BY a.n DESC LIMIT 1`)
	if errors.Is(err, sql.ErrNoRows) {
		return &Policy{}, nil
	}
	if err != nil {
		return nil, translate("read the policy", err)
	}
	activation, err := row.thing()
	return &Policy{Activation: &activation, Archive: row.Archive}, err
}

func (p postgres) policy(ctx context.Context) (*Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, manageReadDeadline)
	defer cancel()
	return readPolicy(ctx, p.changing)
}

// Policy returns what the database has in force, as far as changes are applied; nil before
// the first contact. PolicyChanged tells when to look again.
func (s *Store) Policy() *Policy { return s.policy.Load() }

// PolicyChanged receives after the policy that Policy returns has become another one. It is
// for one reader.
func (s *Store) PolicyChanged() <-chan struct{} { return s.policyChanged }

// learnPolicy takes what the database says is in force. In a database that was put back an
// older activation does not replace a newer one: a fix that was in force stays so.
func (s *Store) learnPolicy(p *Policy) {
	if known := s.policy.Load(); known != nil && p.change() <= known.change() {
		return
	}
	s.policy.Store(p)
	select {
	case s.policyChanged <- struct{}{}:
	default:
	}
}

// DecidesBy says which policy decides on this replica: receipts of activations wait for it.
func (s *Store) DecidesBy(revision string) {
	s.syncing.Lock()
	s.replica.policy = revision
	s.syncing.Unlock()
	s.wakeUp()
}

// PolicyEffective implements manage.Store. Until when a silent replica decides by another
// policy is not known: one that hears of it and cannot compile it goes on serving.
func (s *Store) PolicyEffective(ctx context.Context, revision string) (manage.Effective, error) {
	e, err := s.awaitReplicas(ctx, effectiveWithin, func(r *replicaRow) bool { return r.PolicyRevision.String == revision })
	for i := range e.Silent {
		e.Silent[i].ServesUntil = time.Time{}
	}
	return e, err
}

// Activations implements manage.Reader.
func (r *reads) Activations(ctx context.Context, t manage.Tenant, before int64, limit int) ([]authz.PolicyActivation, error) {
	return list[authz.PolicyActivation, activationRow](ctx, r, "list activations", activationsSQL+`
		WHERE $1::boolean AND ($2::bigint = 0 OR n < $2::bigint) ORDER BY n DESC LIMIT $3`, t.Everyone(), before, limit)
}

// PolicyArchive implements manage.Reader.
func (r *reads) PolicyArchive(ctx context.Context, t manage.Tenant, revision string) ([]byte, error) {
	var archive []byte
	err := r.tx.GetContext(ctx, &archive, `SELECT archive FROM policies WHERE $1::boolean AND revision = $2`, t.Everyone(), revision)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read a policy: %w", ErrNotFound)
	}
	return archive, translate("read a policy", err)
}

// ActivatePolicy implements manage.Writer.
func (c *Change) ActivatePolicy(ctx context.Context, t manage.Tenant, a *authz.PolicyActivation, archive []byte) error {
	a.Change, a.At = c.revision, c.now
	if archive != nil {
		_, err := c.execMany(ctx, "keep a policy", `
			INSERT INTO policies (revision, archive, created_at) SELECT $2::text, $3::bytea, $4::timestamptz WHERE $1::boolean
			ON CONFLICT (revision) DO NOTHING`, t.Everyone(), a.Revision, archive, c.now)
		if err != nil {
			return err
		}
	}
	return c.exec(ctx, "activate a policy", `
		INSERT INTO policy_activations (n, policy_revision, at, activated_by, note, security_fix, rolled_back, accepted_tests)
		SELECT $2::bigint, NULLIF($3::text, ''), $4::timestamptz, $5::text, $6::text, $7::boolean, $8::boolean, $9::text[] WHERE $1::boolean`,
		t.Everyone(), c.revision, a.Revision, c.now, a.By, a.Note, a.SecurityFix, a.RolledBack, pq.StringArray(append([]string{}, a.Accepted...)))
}
