package store

import (
	"context"
	"errors"
	"strings"

	"github.com/supportstation/keystile/authz"
)

var errNotAdmitted = errors.New("no contact with Postgres yet")

// admitOnce refuses a database that this configuration does not fit, before anything of
// it is believed: with another pepper every key would be unknown, and in another
// deployment everyone's would be allowed.
func (s *Store) admitOnce(ctx context.Context) error {
	if s.admitted.Load() {
		return nil
	}
	err := s.admit(ctx)
	if err != nil {
		s.admission.Store(&err)
	}
	switch {
	case err == nil:
		s.admitted.Store(true)
	case !isAway(err):
		select {
		case s.refused <- err:
		default:
		}
	}
	return err
}

func (s *Store) admit(ctx context.Context) error {
	if s.changes == nil {
		return nil // a simulation
	}
	soon, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	if err := s.changes.PingContext(soon); err != nil {
		return translate("connect to Postgres", err)
	}
	if err := checkSchema(soon, s.changes); err != nil {
		return err
	}
	kind, err := deployment(soon, s.changes)
	if err != nil {
		return err
	}
	if kind != s.deployment {
		return &DeploymentError{Database: kind, Configured: s.deployment}
	}
	if err := s.check.PingContext(soon); err != nil { // so that the first look-up need not connect
		return translate("connect to Postgres", err)
	}
	return s.checkPeppers(ctx) // may have to look through all secrets
}

// Refused tells why this configuration does not fit a database that did not answer when
// the store was opened. Such a store decides nothing: close it.
func (s *Store) Refused() <-chan error { return s.refused }

// notAdmitted is the error of who asks before the database is known to fit.
func (s *Store) notAdmitted(doing string) error {
	if s.admitted.Load() {
		return nil
	}
	cause := errNotAdmitted
	if last := s.admission.Load(); last != nil {
		cause = *last
	}
	return authz.Unavailable(doing, cause)
}

// isAway tells of a Postgres that may answer later as it is configured: not of one that
// refuses the name, the password or the database.
func isAway(err error) bool {
	if authz.KindOf(err) != authz.KindUnavailable {
		return false
	}
	var said *serverError
	return !errors.As(err, &said) || !strings.HasPrefix(said.code, "28") && said.code != "3D000"
}
