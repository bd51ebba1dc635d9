package manage_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func asError(err error, target **authz.Error) bool { return errors.As(err, target) }

// shippedSnapshot is loaded once: nothing of it changes.
var shippedSnapshot = sync.OnceValues(func() (*policy.Snapshot, error) { return policy.Load(context.Background(), policies.FS) })

func shippedPolicy(t *testing.T) *policy.Engine {
	t.Helper()
	snapshot, err := shippedSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	return policy.NewEngine(snapshot)
}

// refusing refuses to make keys.
type refusing struct{ manage.Policy }

func (p refusing) DecideAdmin(ctx context.Context, q authz.AdminQuestion) (authz.AdminVerdict, error) {
	if q.Action == "keys.create" {
		return authz.AdminVerdict{Reasons: []authz.Reason{{Code: "key_lifetime", Message: "A live key must expire."}}}, nil
	}
	return p.Policy.DecideAdmin(ctx, q)
}

// With a policy that allows everything, what is foreign is still not there, and what
// is above a role still refused.
func TestCeilings_HoldWhateverPolicySays(t *testing.T) {
	r := newRigWith(t, everything{shippedPolicy(t)})
	foreign := r.organization(t, "Globex")
	made := r.key(t, keyInput())
	ctx := t.Context()
	name, plan, yes := "x", "standard", true
	for _, role := range []authz.Role{authz.RoleOwner, authz.RoleDeveloper, authz.RoleAuditor} {
		own, stranger := r.as(r.admin(t, role, r.org)), r.as(r.admin(t, role, foreign))
		format, _ := authz.NewForeignFormat("old_", 32, "hex")
		for what, tt := range map[string]struct {
			want string
			do   func() error
		}{
			"get a foreign key":     {"not_found", func() error { _, _, err := r.GetKey(ctx, stranger, r.org, made.Key.ID); return err }},
			"get it without a wall": {"not_found", func() error { _, _, err := r.GetKey(ctx, stranger, authz.OrganizationID{}, made.Key.ID); return err }},
			"get it in the own":     {"not_found", func() error { _, _, err := r.GetKey(ctx, stranger, foreign, made.Key.ID); return err }},
			"list foreign keys": {"not_found", func() error {
				_, err := r.ListKeys(ctx, stranger, r.org, manage.KeyFilter{}, manage.Page{})
				return err
			}},
			"revoke a foreign key":    {"not_found", func() error { _, err := r.RevokeKey(ctx, stranger, authz.OrganizationID{}, made.Key.ID); return err }},
			"create in a foreign one": {"not_found", func() error { _, err := r.CreateKey(ctx, stranger, r.org, keyInput()); return err }},
			"a foreign audit log":     {"not_found", func() error { _, err := r.ListAuditLog(ctx, stranger, r.org, manage.AuditFilter{}); return err }},
			"the platform's audit log": {"role_forbidden", func() error {
				_, err := r.ListAuditLog(ctx, own, authz.OrganizationID{}, manage.AuditFilter{})
				return err
			}},
			"import": {"role_forbidden", func() error {
				_, err := r.ImportKeys(ctx, own, r.org, format, []manage.ImportRow{{Line: 1}})
				return err
			}},
			"another plan": {"role_forbidden", func() error {
				_, err := r.UpdateOrganization(ctx, own, r.org, manage.OrganizationUpdate{Plan: &plan})
				return err
			}},
			"suspend": {"role_forbidden", func() error {
				_, err := r.UpdateOrganization(ctx, own, r.org, manage.OrganizationUpdate{Name: &name, Suspended: &yes})
				return err
			}},
			"delete the organization": {"role_forbidden", func() error { _, err := r.DeleteOrganization(ctx, own, r.org); return err }},
			"a new organization": {"role_forbidden", func() error {
				_, err := r.CreateOrganization(ctx, own, manage.OrganizationInput{Name: "x", Plan: plan})
				return err
			}},
			"a caller": {"role_forbidden", func() error {
				_, err := r.CreateCaller(ctx, own, manage.CallerInput{Name: "x", Environments: []authz.Environment{"live"}})
				return err
			}},
			"callers": {"role_forbidden", func() error { _, err := r.ListCallers(ctx, own, "", manage.Page{}); return err }},
			"an admin": {"role_forbidden", func() error {
				_, err := r.CreateAdmin(ctx, own, manage.AdminInput{Name: "x", Role: role, Organization: r.org, ExpiresInDays: 1})
				return err
			}},
			"a platform admin": {"role_forbidden", func() error {
				_, err := r.CreateAdmin(ctx, own, manage.AdminInput{Name: "x", Role: authz.RolePlatformAdmin, ExpiresInDays: 1})
				return err
			}},
			"another's token": {"role_forbidden", func() error {
				other := r.admin(t, authz.RoleAuditor, r.org)
				_, err := r.RotateAdmin(ctx, own, other.ID, manage.TokenRotation{ExpiresInDays: 1})
				return err
			}},
			"the platform admin": {"not_found", func() error { _, err := r.DeleteAdmin(ctx, own, r.platform.ID); return err }},
			"replicas":           {"role_forbidden", func() error { _, _, err := r.Replicas(ctx, own); return err }},
		} {
			if got := code(tt.do()); got != tt.want {
				t.Errorf("%s, %s: %q, want %q", role, what, got, tt.want)
			}
		}
	}
	if k, at, err := r.GetKey(ctx, r.as(r.platform), r.org, made.Key.ID); err != nil || k.Status(at) != manage.StatusActive || k.Version != 1 {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestIdempotency_TheSameRequestGetsTheSameAnswerWithoutItsSecret(t *testing.T) {
	r := newRig(t)
	req := r.as(r.platform)
	req.Operation, req.IdempotencyKey, req.Fingerprint = "POST keys", "once", sha256.Sum256([]byte("a"))
	first, err := r.CreateKey(t.Context(), req, r.org, keyInput())
	if err != nil || first.SecretAlreadyShown || first.Secret.Reveal() == "" {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := r.CreateKey(t.Context(), req, r.org, keyInput())
	if err != nil || !again.SecretAlreadyShown || again.Secret.Reveal() != "" || again.Key.ID != first.Key.ID || !again.At.Equal(first.At) {
		t.Errorf("%+v, %v", again, err)
	}
	other := req
	other.Fingerprint = sha256.Sum256([]byte("b"))
	if _, err := r.CreateKey(t.Context(), other, r.org, keyInput()); code(err) != "idempotency_mismatch" {
		t.Errorf("another request: %v", err)
	}
	somebody := req
	somebody.Actor = r.admin(t, authz.RoleOwner, r.org)
	if theirs, err := r.CreateKey(t.Context(), somebody, r.org, keyInput()); err != nil || theirs.SecretAlreadyShown {
		t.Errorf("another actor: %+v, %v", theirs, err)
	}
	if n := len(r.listKeys(t, r.platform)); n != 2 {
		t.Errorf("%d keys, want 2", n)
	}
	storetest.Exec(t, r.at, `UPDATE idempotency SET created_at = created_at - interval '25 hours'`)
	if late, err := r.CreateKey(t.Context(), req, r.org, keyInput()); err != nil || late.SecretAlreadyShown {
		t.Errorf("after a day: %+v, %v", late, err)
	}
}

func TestIdempotency_RepeatedRevocationStillTellsHowFarItGot(t *testing.T) {
	r := newRig(t)
	made := r.key(t, keyInput())
	req := r.as(r.platform)
	req.Operation, req.IdempotencyKey = "POST revoke", "once"
	for range 2 {
		out, err := r.RevokeKey(t.Context(), req, r.org, made.Key.ID)
		if err != nil || out.Effective == nil || out.Effective.Acknowledged != 1 || len(out.Effective.Silent) != 0 {
			t.Errorf("%+v, %v", out, err)
		}
	}
}

func TestDryRun_TellsAndKeepsNothing(t *testing.T) {
	r := newRig(t)
	req := r.as(r.platform)
	req.DryRun = true
	out, err := r.CreateKey(t.Context(), req, r.org, keyInput())
	if err != nil || out.Key.Name != "ci" || out.Secret.Reveal() != "" || len(out.Key.Secrets) != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	made := r.key(t, keyInput())
	revoked, err := r.RevokeKey(t.Context(), req, r.org, made.Key.ID)
	if err != nil || revoked.Key.Status(revoked.At) != manage.StatusRevoked || revoked.Effective != nil {
		t.Errorf("%+v, %v", revoked, err)
	}
	if keys := r.listKeys(t, r.platform); len(keys) != 1 || keys[0].Status(time.Now()) != manage.StatusActive {
		t.Errorf("%+v", keys)
	}
	if list, err := r.ListAuditLog(t.Context(), r.as(r.platform), r.org, manage.AuditFilter{}); err != nil || len(list.Items) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAdmins_FirstIsMadeOnceAndTheLastStays(t *testing.T) {
	r := newRig(t)
	if _, err := manage.Bootstrap(t.Context(), r.store, r.keys, "Eve", 1); !errors.Is(err, manage.ErrBootstrapped) {
		t.Errorf("a second bootstrap: %v", err)
	}
	if _, err := r.DeleteAdmin(t.Context(), r.as(r.platform), r.platform.ID); code(err) != "last_platform_admin" {
		t.Errorf("the last: %v", err)
	}
	second := r.admin(t, authz.RolePlatformAdmin, authz.OrganizationID{})
	if _, err := r.DeleteAdmin(t.Context(), r.as(second), r.platform.ID); err != nil {
		t.Fatal(err)
	}
	// Who was recognized before is refused in the transaction itself.
	if _, err := r.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput()); code(err) != "admin_unauthorized" {
		t.Errorf("a removed admin: %v", err)
	}
	if _, err := r.DeleteAdmin(t.Context(), r.as(second), second.ID); code(err) != "last_platform_admin" {
		t.Errorf("the last: %v", err)
	}
	// An admin that has expired does not count.
	r.platform = second
	third := r.admin(t, authz.RolePlatformAdmin, authz.OrganizationID{})
	storetest.Exec(t, r.at, `UPDATE admins SET expires_at = now() WHERE id = $1`, third.ID)
	if _, err := r.DeleteAdmin(t.Context(), r.as(second), second.ID); code(err) != "last_platform_admin" {
		t.Errorf("the last that is live: %v", err)
	}
	storetest.Exec(t, r.at, `DELETE FROM admin_tokens`)
	storetest.Exec(t, r.at, `DELETE FROM admins`)
	if _, err := manage.Bootstrap(t.Context(), r.store, r.keys, "Eve", 1); !errors.Is(err, manage.ErrBootstrapped) {
		t.Errorf("the tombstone outlives every admin: %v", err)
	}
}

func TestAdmins_MustExpireAndEverybodyRenewsTheirOwn(t *testing.T) {
	r := newRig(t)
	for _, days := range []int{0, -1, 91} {
		_, err := r.CreateAdmin(t.Context(), r.as(r.platform), manage.AdminInput{Name: "x", Role: authz.RolePlatformAdmin, ExpiresInDays: days})
		if code(err) != "out_of_range" {
			t.Errorf("%d days: %v", days, err)
		}
	}
	for _, role := range []authz.Role{authz.RoleOwner, authz.RoleDeveloper, authz.RoleAuditor, authz.RolePlatformAdmin} {
		org := r.org
		if role == authz.RolePlatformAdmin {
			org = authz.OrganizationID{}
		}
		self := r.admin(t, role, org)
		if _, err := r.RotateAdmin(t.Context(), r.as(self), self.ID, manage.TokenRotation{ExpiresInDays: 31}); (code(err) == "out_of_range") !=
			(role != authz.RolePlatformAdmin) {
			t.Errorf("%s, for longer than was granted: %v", role, err)
			continue
		}
		if role == authz.RolePlatformAdmin {
			continue
		}
		out, err := r.RotateAdmin(t.Context(), r.as(self), self.ID, manage.TokenRotation{ExpiresInDays: 30})
		if err != nil || out.Admin.ExpiresAt.Sub(out.At) != 30*24*time.Hour {
			t.Errorf("%s: %+v, %v", role, out, err)
			continue
		}
		r.actor(t, out.Secret)
		if _, err := r.GetOrganization(t.Context(), r.as(self), r.org); err != nil {
			t.Errorf("%s: reads are as the token was recognized: %v", role, err)
		}
		if _, err := r.RotateAdmin(t.Context(), r.as(self), self.ID, manage.TokenRotation{ExpiresInDays: 1}); code(err) != "admin_unauthorized" {
			t.Errorf("%s, with the old token: %v", role, err)
		}
	}
}

func TestOrganizations_SuspensionIsRestoredExactlyAndDeletionIsForEver(t *testing.T) {
	r := newRig(t)
	active, disabled := r.key(t, keyInput()), r.key(t, keyInput())
	yes, no := true, false
	if _, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, disabled.Key.ID, manage.KeyUpdate{Disabled: &yes}); err != nil {
		t.Fatal(err)
	}
	states := func() [2]string {
		var out [2]string
		for i, id := range []authz.KeyID{active.Key.ID, disabled.Key.ID} {
			k, at, err := r.GetKey(t.Context(), r.as(r.platform), r.org, id)
			if err != nil {
				t.Fatal(err)
			}
			out[i] = k.Status(at)
		}
		return out
	}
	before := states()
	for _, on := range []*bool{&yes, &no} {
		out, err := r.UpdateOrganization(t.Context(), r.as(r.platform), r.org, manage.OrganizationUpdate{Suspended: on})
		if err != nil || (out.Effective != nil) != *on {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	if after := states(); after != before {
		t.Errorf("%v, before %v", after, before)
	}
	owner := r.admin(t, authz.RoleOwner, r.org)
	if out, err := r.DeleteOrganization(t.Context(), r.as(r.platform), r.org); err != nil || out.Effective == nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if after := states(); after != [2]string{manage.StatusRevoked, manage.StatusRevoked} {
		t.Errorf("%v", after)
	}
	if _, err := r.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput()); code(err) != "organization_deleted" {
		t.Errorf("a key in a deleted one: %v", err)
	}
	if _, err := r.UpdateOrganization(t.Context(), r.as(owner), r.org, manage.OrganizationUpdate{}); code(err) != "admin_unauthorized" {
		t.Errorf("its owner: %v", err)
	}
	if list, err := r.ListAuditLog(t.Context(), r.as(r.platform), r.org, manage.AuditFilter{}); err != nil || len(list.Items) == 0 {
		t.Errorf("its trail: %+v, %v", list, err)
	}
}

// Who took another organization's id for an external id of its own would be taken for the other.
func TestOrganizations_AnExternalIDIsNoID(t *testing.T) {
	r := newRig(t)
	other := authz.NewOrganizationID(time.Now()).String()
	_, created := r.CreateOrganization(t.Context(), r.as(r.platform), manage.OrganizationInput{Name: "Evil", Plan: "standard", ExternalID: other})
	_, updated := r.UpdateOrganization(t.Context(), r.as(r.platform), r.org, manage.OrganizationUpdate{ExternalID: &other})
	for what, err := range map[string]error{"created": created, "updated": updated} {
		var e *authz.Error
		if !errors.As(err, &e) || e.Code != "out_of_range" || e.Pointer != "/external_id" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Metadata and the external id are read by policy: a change of them may take something away.
func TestEffective_OfWhatPolicyReads(t *testing.T) {
	r := newRig(t)
	metadata, external, name := []byte(`{"frozen":true}`), "acme", "Acme Ltd"
	for what, c := range map[string]struct {
		in   manage.OrganizationUpdate
		told bool
	}{
		"its metadata":    {manage.OrganizationUpdate{Metadata: metadata}, true},
		"its external id": {manage.OrganizationUpdate{ExternalID: &external}, true},
		"its name":        {manage.OrganizationUpdate{Name: &name}, false},
	} {
		out, err := r.UpdateOrganization(t.Context(), r.as(r.platform), r.org, c.in)
		if err != nil || (out.Effective != nil) != c.told {
			t.Errorf("%s: %+v, %v", what, out, err)
		}
	}
	made := r.key(t, keyInput())
	out, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyUpdate{Metadata: metadata})
	if err != nil || out.Effective == nil {
		t.Errorf("a key's metadata: %+v, %v", out, err)
	}
	// The old secret's end comes nearer, and every replica must know of it.
	if rotated, err := r.RotateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyRotation{Grace: time.Minute}); err != nil || rotated.Effective == nil {
		t.Errorf("a rotation with a grace: %+v, %v", rotated, err)
	}
}

// A caller's token works when it is shown, on every replica: whoever makes one uses it at once.
func TestCallers_ANewTokenWorksAtOnceOnEveryReplica(t *testing.T) {
	r := newRig(t)
	stores := []*store.Store{r.store, storetest.Open(t, r.at, r.peppers)}
	works := func(token authz.Secret) {
		t.Helper()
		for i, s := range stores {
			if c, err := s.FindCaller(t.Context(), token.Hash()); c == nil || err != nil {
				t.Errorf("replica %d: %v, %v", i, c, err)
			}
		}
	}
	for i := range 10 {
		made, err := r.CreateCaller(t.Context(), r.as(r.platform), manage.CallerInput{Name: fmt.Sprint("app-", i), Environments: []authz.Environment{"live"}})
		if err != nil {
			t.Fatal(err)
		}
		works(made.Secret)
		rotated, err := r.RotateCaller(t.Context(), r.as(r.platform), made.Caller.ID, manage.TokenRotation{Grace: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		works(rotated.Secret)
	}
}

// Every replica holds all tokens of callers that work, so there is an end to them; those that
// have ended are none of them.
func TestCallers_AsManyTokensAsReplicasHold(t *testing.T) {
	r := newRig(t)
	in := manage.CallerInput{Name: "tickets", Environments: []authz.Environment{"live"}}
	made, err := r.CreateCaller(t.Context(), r.as(r.platform), in)
	if err != nil {
		t.Fatal(err)
	}
	in.Name = "single"
	single, err := r.CreateCaller(t.Context(), r.as(r.platform), in)
	if err != nil {
		t.Fatal(err)
	}
	in.Name = "bulk"
	bulk, err := r.CreateCaller(t.Context(), r.as(r.platform), in)
	if err != nil {
		t.Fatal(err)
	}
	more := func(revoked string, n int) {
		t.Helper()
		storetest.Exec(t, r.at, `INSERT INTO caller_tokens (digest, id, caller_id, pepper_id, hint, revoked_at)
			SELECT sha256(gen_random_uuid()::text::bytea), gen_random_uuid(), caller_id, pepper_id, hint, `+revoked+`
			FROM (SELECT * FROM caller_tokens WHERE caller_id = $2 LIMIT 1) t, generate_series(1, $1)`, n, bulk.Caller.ID)
	}
	more("now()", manage.MaxCallerTokens+1)
	rotated, err := r.RotateCaller(t.Context(), r.as(r.platform), made.Caller.ID, manage.TokenRotation{Grace: time.Hour})
	if err != nil || rotated.Effective == nil || rotated.Effective.Acknowledged != 1 {
		t.Fatalf("with many that have ended: %+v, %v", rotated, err)
	}
	more("NULL", manage.MaxCallerTokens-4)
	in.Name = "customers"
	if _, err := r.CreateCaller(t.Context(), r.as(r.platform), in); code(err) != "quota_exceeded" {
		t.Errorf("one more caller: %v", err)
	}
	if _, err := r.RotateCaller(t.Context(), r.as(r.platform), single.Caller.ID, manage.TokenRotation{Grace: time.Hour}); code(err) != "quota_exceeded" {
		t.Errorf("one more token: %v", err)
	}
	if _, err := r.RotateCaller(t.Context(), r.as(r.platform), single.Caller.ID, manage.TokenRotation{}); err != nil {
		t.Errorf("one instead of another: %v", err)
	}
	// More than there may be, which only a restore or another program can make, stop nothing.
	more("NULL", manage.MaxCallerTokens)
	if err := r.store.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if gone, err := r.DeleteCaller(t.Context(), r.as(r.platform), made.Caller.ID); err != nil || gone.Effective == nil || gone.Effective.Acknowledged != 1 {
		t.Errorf("a caller is removed: %+v, %v", gone, err)
	}
}

func TestCallers_RotateWithOverlapAndGo(t *testing.T) {
	r := newRig(t)
	made, err := r.CreateCaller(t.Context(), r.as(r.platform), manage.CallerInput{Name: "tickets", Environments: []authz.Environment{"live"}})
	if err != nil {
		t.Fatal(err)
	}
	callers := authz.NewCallers(r.store, r.store.Clock())
	accepted := func(token authz.Secret) bool {
		t.Helper()
		if err := r.store.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := callers.Authenticate(t.Context(), token.Reveal(), authz.PermissionCheck)
		return err == nil
	}
	second, err := r.RotateCaller(t.Context(), r.as(r.platform), made.Caller.ID, manage.TokenRotation{Grace: time.Hour})
	if err != nil || second.Effective == nil || len(second.Caller.LiveTokens(second.At)) != 2 {
		t.Fatalf("%+v, %v", second, err)
	}
	if !accepted(made.Secret) || !accepted(second.Secret) {
		t.Error("both tokens work for the grace")
	}
	third, err := r.RotateCaller(t.Context(), r.as(r.platform), made.Caller.ID, manage.TokenRotation{})
	if err != nil || third.Effective == nil {
		t.Fatalf("%+v, %v", third, err)
	}
	if accepted(made.Secret) || accepted(second.Secret) || !accepted(third.Secret) {
		t.Error("without a grace the new token alone works")
	}
	if _, err := r.CreateCaller(t.Context(), r.as(r.platform), manage.CallerInput{Name: "tickets", Environments: []authz.Environment{"live"}}); code(err) != "name_taken" {
		t.Errorf("the same name: %v", err)
	}
	if gone, err := r.DeleteCaller(t.Context(), r.as(r.platform), made.Caller.ID); err != nil || gone.Effective == nil || gone.Effective.Acknowledged != 1 {
		t.Fatalf("%+v, %v", gone, err)
	}
	if accepted(third.Secret) {
		t.Error("a removed caller is accepted")
	}
	if _, err := r.CreateCaller(t.Context(), r.as(r.platform), manage.CallerInput{Name: "tickets", Environments: []authz.Environment{"live"}}); err != nil {
		t.Errorf("the name of a removed one: %v", err)
	}
}

// silent decides nothing.
type silent struct{ manage.Policy }

func (silent) DecideAdmin(context.Context, authz.AdminQuestion) (authz.AdminVerdict, error) {
	return authz.AdminVerdict{Allow: true}, errors.New("no decision")
}

func TestPolicy_ThatDoesNotDecideChangesNothingAndIsNotCalledPostgres(t *testing.T) {
	r := newRig(t)
	svc, err := manage.New(manage.Options{Store: r.store, Policy: silent{r.engine}, Format: r.format, AuditKeys: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	_, err = svc.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput())
	var known *authz.Error
	if !asError(err, &known) || known.Kind != authz.KindUnavailable || !strings.HasPrefix(known.Message, "policy could not decide") {
		t.Errorf("%v", err)
	}
	if n := len(r.listKeys(t, r.platform)); n != 0 {
		t.Errorf("%d keys were made", n)
	}
}
