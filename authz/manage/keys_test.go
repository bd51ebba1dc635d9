package manage_test

import (
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

func TestCreateKey_BadInputIsToldByItsField(t *testing.T) {
	r := newRig(t)
	owner := r.admin(t, authz.RoleOwner, r.org)
	deep := `{"a":{"b":{"c":{"d":{"e":1}}}}}`
	for name, tt := range map[string]struct {
		change  func(*manage.KeyInput)
		pointer string
	}{
		"no name":                {func(in *manage.KeyInput) { in.Name = "" }, "/name"},
		"a long name":            {func(in *manage.KeyInput) { in.Name = strings.Repeat("ä", 101) }, "/name"},
		"a control character":    {func(in *manage.KeyInput) { in.Name = "a\x1b[31m" }, "/name"},
		"a reversing character":  {func(in *manage.KeyInput) { in.Name = "a\u202eb" }, "/name"},
		"an invisible letter":    {func(in *manage.KeyInput) { in.Name = "\u3164" }, "/name"},
		"a key as a name":        {func(in *manage.KeyInput) { in.Name = r.format.Generate("live").Reveal() }, "/name"},
		"a token as a name":      {func(in *manage.KeyInput) { in.Name = authz.AdminTokens().Generate().Reveal() }, "/name"},
		"a key within a name":    {func(in *manage.KeyInput) { in.Name = "x " + r.format.Generate("live").Reveal() + "." }, "/name"},
		"a key as an id":         {func(in *manage.KeyInput) { in.ExternalID = r.format.Generate("test").Reveal() }, "/external_id"},
		"a tiny number":          {func(in *manage.KeyInput) { in.Metadata = []byte(`{"x":[1e-16000]}`) }, "/metadata"},
		"a huge exponent":        {func(in *manage.KeyInput) { in.Metadata = []byte(`{"x":0e99999999999999999999}`) }, "/metadata"},
		"space at the end":       {func(in *manage.KeyInput) { in.Name = "a " }, "/name"},
		"no environment":         {func(in *manage.KeyInput) { in.Environment = "" }, "/environment"},
		"no scope":               {func(in *manage.KeyInput) { in.Scopes = nil }, "/scopes"},
		"a scope of nobody":      {func(in *manage.KeyInput) { in.Scopes = []authz.Scope{"tickets:delete"} }, "/scopes"},
		"a scope twice":          {func(in *manage.KeyInput) { in.Scopes = []authz.Scope{"tickets:read", "tickets:read"} }, "/scopes"},
		"an expiry in the past":  {func(in *manage.KeyInput) { in.ExpiresAt = time.Now().Add(-time.Second) }, "/expires_at"},
		"an expiry in 200 years": {func(in *manage.KeyInput) { in.ExpiresAt = time.Now().AddDate(200, 0, 0) }, "/expires_at"},
		"two expiries": {
			func(in *manage.KeyInput) { in.ExpiresAt, in.ExpiresInDays = time.Now().Add(time.Hour), 1 }, "/expires_in_days",
		},
		"no network":             {func(in *manage.KeyInput) { in.AllowedCIDRs = []string{"10.0.0.0/33"} }, "/allowed_cidrs"},
		"host bits":              {func(in *manage.KeyInput) { in.AllowedCIDRs = []string{"10.0.0.1/8"} }, "/allowed_cidrs"},
		"a mapped network":       {func(in *manage.KeyInput) { in.AllowedCIDRs = []string{"::ffff:10.0.0.0/104"} }, "/allowed_cidrs"},
		"a zone":                 {func(in *manage.KeyInput) { in.AllowedCIDRs = []string{"fe80::1%eth0"} }, "/allowed_cidrs"},
		"65 networks":            {func(in *manage.KeyInput) { in.AllowedCIDRs = make([]string, 65) }, "/allowed_cidrs"},
		"metadata is a list":     {func(in *manage.KeyInput) { in.Metadata = []byte(`[]`) }, "/metadata"},
		"metadata too deep":      {func(in *manage.KeyInput) { in.Metadata = []byte(`{"x":` + deep + `}`) }, "/metadata"},
		"metadata too large":     {func(in *manage.KeyInput) { in.Metadata = []byte(`{"x":"` + strings.Repeat("x", 4096) + `"}`) }, "/metadata"},
		"metadata beyond bounds": {func(in *manage.KeyInput) { in.Metadata = []byte(`{"x":1e400}`) }, "/metadata"},
		"a space in external id": {func(in *manage.KeyInput) { in.ExternalID = "a b" }, "/external_id"},
		"a rate beyond the plan": {
			func(in *manage.KeyInput) { in.RateLimit = &authz.Rate{Rate: 101, Period: time.Minute, Burst: 100} }, "/rate_limit",
		},
		"a burst beyond the plan": {
			func(in *manage.KeyInput) { in.RateLimit = &authz.Rate{Rate: 100, Period: time.Minute, Burst: 101} }, "/rate_limit",
		},
	} {
		in := keyInput()
		tt.change(&in)
		_, err := r.CreateKey(t.Context(), r.as(owner), r.org, in)
		var known *authz.Error
		if !asError(err, &known) || known.Pointer != tt.pointer || known.Message == "" {
			t.Errorf("%s: %v, want an error about %s", name, err, tt.pointer)
		}
	}
	if n := len(r.listKeys(t, r.platform)); n != 0 {
		t.Errorf("%d keys were made", n)
	}
}

func TestCreateKey_IsAsItWasAskedFor(t *testing.T) {
	r := newRig(t)
	in := manage.KeyInput{
		Name: "<script>ü", Environment: authz.EnvironmentTest, Scopes: []authz.Scope{"tickets:write", "customers:read"},
		ExpiresInDays: 30, AllowedCIDRs: []string{"2001:db8::/32", "203.0.113.7", "10.0.0.0/8"},
		RateLimit: &authz.Rate{Rate: 50, Period: time.Minute, Burst: 50},
		Metadata:  []byte(`{ "n": 12345678901234567890, "m": {"a": [1.10]} }`), ExternalID: "crm-7",
	}
	made := r.key(t, in)
	if env, ok := r.format.Accepts(made.Secret.Reveal()); !ok || env != authz.EnvironmentTest {
		t.Error("the secret has not the form of one")
	}
	k, _, err := r.GetKey(t.Context(), r.as(r.platform), authz.OrganizationID{}, made.Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	if k.Name != in.Name || k.Environment != in.Environment || len(k.Scopes) != 2 || k.Scopes[0] != "customers:read" ||
		k.ExternalID != "crm-7" || *k.RateLimit != *in.RateLimit || k.Version != 1 || k.CreatedBy != r.platform.ID.String() {
		t.Errorf("%+v", k)
	}
	if got := k.ExpiresAt.Sub(k.CreatedAt); got != 30*24*time.Hour || k.Lifetime != got {
		t.Errorf("lives %v, %v", got, k.Lifetime)
	}
	if len(k.AllowedCIDRs) != 3 || k.AllowedCIDRs[1].String() != "203.0.113.7/32" {
		t.Errorf("%v", k.AllowedCIDRs)
	}
	if !strings.Contains(k.Metadata.JSON(), "12345678901234567890") || !strings.Contains(k.Metadata.JSON(), "1.10") {
		t.Errorf("metadata %s", k.Metadata)
	}
	if len(k.Secrets) != 1 || k.Secrets[0].Hint != r.format.Hint(made.Secret) {
		t.Errorf("%+v", k.Secrets)
	}
}

func TestRotateKey_GivesTheOriginalLifetimeAfreshEachTime(t *testing.T) {
	r := newRig(t)
	in := keyInput()
	in.ExpiresInDays = 30
	made := r.key(t, in)
	for range 3 {
		changed, err := r.RotateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyRotation{Grace: time.Hour, DropOldest: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := changed.Key.ExpiresAt.Sub(changed.At); got != 30*24*time.Hour {
			t.Errorf("lives %v", got)
		}
		if got := changed.Key.Secrets[1].ExpiresAt.Sub(changed.At); got != time.Hour {
			t.Errorf("the old secret works for %v", got)
		}
	}
	changed, err := r.RotateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyRotation{ExpiresInDays: 7, DropOldest: true})
	if err != nil || changed.Key.ExpiresAt.Sub(changed.At) != 7*24*time.Hour || changed.Effective == nil {
		t.Errorf("%+v, %v", changed, err)
	}
}

func TestKeys_QuotaIsThePlans(t *testing.T) {
	r := newRig(t)
	small := &planned{Policy: r.engine}
	svc, err := manage.New(manage.Options{Store: r.store, Policy: small, Format: r.format, AuditKeys: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	first, err := svc.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := svc.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput()); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput()); code(err) != "quota_exceeded" {
		t.Errorf("a third: %v", err)
	}
	if _, err := svc.RevokeKey(t.Context(), r.as(r.platform), r.org, first.Key.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput()); err != nil {
		t.Errorf("after one was revoked: %v", err)
	}
}

// planned allows two keys.
type planned struct{ manage.Policy }

func (p *planned) Catalogue() authz.Catalogue {
	c := p.Policy.Catalogue()
	plans := make([]authz.Plan, len(c.Plans))
	copy(plans, c.Plans)
	for i := range plans {
		plans[i].MaxKeys = 2
	}
	c.Plans = plans
	return c
}

func TestKeys_LostRaceIsNoticed(t *testing.T) {
	r := newRig(t)
	made := r.key(t, keyInput())
	name := "mine"
	req := r.as(r.platform)
	req.IfVersion = made.Key.Version
	changed, err := r.UpdateKey(t.Context(), req, r.org, made.Key.ID, manage.KeyUpdate{Name: &name})
	if err != nil || changed.Key.Version <= made.Key.Version {
		t.Fatalf("%+v, %v", changed, err)
	}
	if _, err := r.UpdateKey(t.Context(), req, r.org, made.Key.ID, manage.KeyUpdate{Name: &name}); code(err) != "version_mismatch" {
		t.Errorf("%v", err)
	}
}

func TestKeys_PolicyMayRefuseWithItsReason(t *testing.T) {
	r := newRigWith(t, shippedPolicy(t))
	svc, err := manage.New(manage.Options{Store: r.store, Policy: refusing{r.engine}, Format: r.format, AuditKeys: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	_, err = svc.CreateKey(t.Context(), r.as(r.platform), r.org, keyInput())
	var known *authz.Error
	if !asError(err, &known) || known.Code != "policy_denied" || len(known.Reasons) != 1 || known.Reasons[0].Code != "key_lifetime" {
		t.Errorf("%v", err)
	}
	if n := len(r.listKeys(t, r.platform)); n != 0 {
		t.Errorf("%d keys were made", n)
	}
}

func (r *rig) listKeys(t *testing.T, as *authz.Admin) []manage.Key {
	t.Helper()
	list, err := r.ListKeys(t.Context(), r.as(as), r.org, manage.KeyFilter{}, manage.Page{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestImport_RowsAreJudgedOneByOne(t *testing.T) {
	r := newRig(t)
	other := r.organization(t, "Other")
	f, err := authz.NewForeignFormat("old_", 32, "hex")
	if err != nil {
		t.Fatal(err)
	}
	secret := func(i int) string { return "old_" + strings.Repeat(string("0123456789abcdef"[i]), 32) }
	row := func(line, i int) manage.ImportRow {
		return manage.ImportRow{
			Line: line, Name: "imported", Environment: authz.EnvironmentLive, Scopes: []authz.Scope{"tickets:read"},
			Hash: authz.NewSecret(secret(i)).Hash(), Hint: "old_" + secret(i)[4:8] + "…" + secret(i)[32:],
		}
	}
	if _, err := r.ImportKeys(t.Context(), r.as(r.platform), other, f, []manage.ImportRow{row(1, 5)}); err != nil {
		t.Fatal(err)
	}
	rows := []manage.ImportRow{row(1, 0), row(2, 1), row(3, 1), row(4, 5), row(5, 2), row(6, 3), row(7, 4), {Line: 8, Problem: "is not JSON"}}
	rows = append(rows, row(9, 6), row(10, 7), row(11, 9))
	rows[8].Name = secret(6)
	rows[9].Hash = authz.NewSecret("").Hash()
	rows[10].Hash = authz.NewSecret(r.token).Hash()
	rows[4].Scopes = []authz.Scope{"tickets:delete"}
	rows[5].Hint = secret(3) // the whole secret must never be stored
	rows[6].ExpiresAt = time.Now().Add(-time.Hour)
	out, err := r.ImportKeys(t.Context(), r.as(r.platform), r.org, f, rows)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]string{
		3: "duplicate", 4: "duplicate", 5: "invalid_row", 6: "invalid_row", 7: "invalid_row", 8: "invalid_row", 9: "invalid_row",
		10: "invalid_row", 11: "duplicate",
	}
	if out.Imported != 2 || len(out.Rejected) != len(want) {
		t.Errorf("%+v", out)
	}
	for _, rejected := range out.Rejected {
		if want[rejected.Line] != rejected.Code || rejected.Message == "" {
			t.Errorf("%+v", rejected)
		}
	}
	again, err := r.ImportKeys(t.Context(), r.as(r.platform), r.org, f, rows[:3])
	if err != nil || again.Imported != 0 || len(again.Rejected) != 3 {
		t.Errorf("a second run: %+v, %v", again, err)
	}
	if err := r.store.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found, err := r.store.FindKey(t.Context(), authz.CallerID{}, authz.NewSecret(secret(0)).Hash()); err != nil || found.Key == nil || found.Key.Organization.ID != r.org {
		t.Errorf("%+v, %v", found, err)
	}
	if !r.store.AcceptsForeign(secret(9)) || r.store.AcceptsForeign("new_"+secret(9)[4:]) {
		t.Error("the declared format, and nothing else, passes to look-ups")
	}
	dry := r.as(r.platform)
	dry.DryRun = true
	if out, err := r.ImportKeys(t.Context(), dry, r.org, f, []manage.ImportRow{row(1, 8), row(2, 8)}); err != nil || out.Imported != 1 {
		t.Errorf("a dry run: %+v, %v", out, err)
	}
	if out, err := r.ImportKeys(t.Context(), r.as(r.platform), r.org, f, []manage.ImportRow{row(1, 8)}); err != nil || out.Imported != 1 {
		t.Errorf("after a dry run: %+v, %v", out, err)
	}
}
