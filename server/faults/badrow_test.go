package faults

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/sdk/admin"
)

// badRow is a row that management would never write: of a key, or its organization, that
// has nothing else in it but a good key. :key, :org, :caller and :n stand for ids and for
// the revision that the change takes.
type badRow struct {
	name, sql string
	// odd tells that it is a row to be served as it is, or denied for what it says.
	odd bool
	// whole tells that the good key beside it is denied as well.
	whole bool
}

func ofKey(set string) string {
	return `UPDATE api_keys SET ` + set + `, revision = :n WHERE id = :key`
}

func ofOrganization(set string) string {
	return `UPDATE organizations SET ` + set + `, revision = :n WHERE id = :org`
}

// ofSecret changes the key's secret, and takes the key to the same revision.
func ofSecret(set string) string {
	return `UPDATE key_secrets SET ` + set + ` WHERE key_id = :key; ` + ofKey(`version = version`)
}

// badRows are all in columns that checks read. Those at the end need no rule of the schema
// to be dropped, or spoil what replicas read whole.
func badRows() []badRow {
	return []badRow{
		{name: "scope without a verb", sql: ofKey(`scopes = '{tickets}'`)},
		{name: "scope with a line break", sql: ofKey(`scopes = E'{"tickets:read\n"}'`)},
		{name: "10,000 scopes, the last one bad", sql: ofKey(`scopes = array_append(array_fill('tickets:read'::text, '{9999}'), '')`)},
		{name: "environment that is none", sql: ofKey(`environment = 'staging'`)},
		{name: "no environment", sql: ofKey(`environment = NULL`)},
		{name: "no name", sql: ofKey(`name = NULL, created_by = NULL`), odd: true},
		{name: "rate limit 0", sql: ofKey(`rate_limit_rate = 0`)},
		{name: "rate limit below 0", sql: ofKey(`rate_limit_burst = -1`)},
		{name: "period 0", sql: ofKey(`rate_limit_period_seconds = 0`)},
		{name: "half a rate limit", sql: ofKey(`rate_limit_burst = NULL`)},
		{name: "made at infinity", sql: ofKey(`created_at = 'infinity'`)},
		{name: "expires at infinity", sql: ofKey(`expires_at = 'infinity'`)},
		{name: "revoked at -infinity", sql: ofKey(`revoked_at = '-infinity'`)},
		{name: "expires in the year 294276", sql: ofKey(`expires_at = '294276-12-31'`), odd: true},
		{name: "expired before Christ", sql: ofKey(`expires_at = '4713-01-01 BC'`)},
		{name: "secret revoked at infinity", sql: ofSecret(`revoked_at = 'infinity'`)},
		{name: "secret expires at -infinity", sql: ofSecret(`expires_at = '-infinity'`)},
		{name: "metadata of 1 MB", sql: ofKey(`metadata = json_build_object('x', repeat('x', 1 << 20))`)},
		{name: "metadata that is a list", sql: ofKey(`metadata = '[]'`)},
		{name: "metadata 5,000 levels deep", sql: ofKey(`metadata = (repeat('{"a":', 5000) || '1' || repeat('}', 5000))::json`), odd: true},
		{name: "addresses that map IPv4", sql: ofKey(`allowed_cidrs = '{::ffff:203.0.113.0/120}'`)},
		{name: "revision of the far future", sql: `UPDATE api_keys SET revision = 9223372036854775806 WHERE id = :key`, odd: true},
		{name: "organization's metadata that is a list", sql: ofOrganization(`metadata = '[1]'`), whole: true},
		{name: "organization's metadata of 1 MB", sql: ofOrganization(`metadata = json_build_object('x', repeat('x', 1 << 20))`), whole: true},
		{name: "organization without plan and name", sql: ofOrganization(`plan = NULL, name = NULL`), odd: true},
		{name: "organization suspended at infinity", sql: ofOrganization(`suspended_at = 'infinity'`), whole: true},
		{name: "address that is NULL", sql: ofKey(`allowed_cidrs = '{NULL}'`)},
		{name: "scope that is NULL", sql: ofKey(`scopes = '{NULL}'`)},
		{name: "scopes in a table", sql: ofKey(`scopes = '{{tickets:read},{tickets:write}}'`)},
		{name: "digest that is too short", sql: ofSecret(`digest = '\x01'`)},
	}
}

// badCallers spoil the caller :caller; its token is refused, and no other.
func badCallers() []badRow {
	ofCaller := func(set string) string { return `UPDATE callers SET ` + set + `, revision = :n WHERE id = :caller` }
	ofToken := func(set string) string {
		return `UPDATE caller_tokens SET ` + set + ` WHERE caller_id = :caller; ` + ofCaller(`name = name`)
	}
	return []badRow{
		{name: "caller's environment that is none", sql: ofCaller(`environments = '{staging}'`)},
		{name: "caller's permission that is none", sql: ofCaller(`permissions = '{nothing}'`)},
		{name: "caller revoked at infinity", sql: ofCaller(`revoked_at = 'infinity'`)},
		{name: "caller's token expires at infinity", sql: ofToken(`expires_at = 'infinity'`)},
		{name: "caller without a name", sql: ofCaller(`name = NULL`), odd: true},
		{name: "caller's permission that is NULL", sql: ofCaller(`permissions = '{NULL}'`)},
		{name: "caller's environment that is NULL", sql: ofCaller(`environments = '{NULL}'`)},
		{name: "caller's token with a digest that is too short", sql: ofToken(`digest = '\x02'`)},
	}
}

// dropRules takes every CHECK and every NOT NULL from the tables that checks read.
const dropRules = `DO $$ DECLARE r record; BEGIN
	FOR r IN SELECT conrelid::regclass AS t, conname FROM pg_constraint WHERE contype = 'c' AND coninhcount = 0 AND connamespace = 'public'::regnamespace LOOP
		EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', r.t, r.conname);
	END LOOP;
	FOR r IN SELECT a.attrelid::regclass AS t, a.attname FROM pg_attribute a
		WHERE a.attrelid IN ('api_keys'::regclass, 'organizations'::regclass, 'callers'::regclass) AND a.attnum > 0 AND a.attnotnull
			AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey)) LOOP
		EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', r.t, r.attname);
	END LOOP; END $$`

// badRowTrial is a system in which one bad row after the other is stored.
type badRowTrial struct {
	*site

	db       *sqlx.DB
	replicas []*replica
	load     *load
	// broken names the rows that were more than their own key's or organization's matter.
	broken []string
	// answered are those whom they are about, served all others that were asked together.
	answered, served answers
}

// badRowStored writes bad rows beside good ones, under load, and starts a replica on them.
func badRowStored(t *trial) {
	s := newSite(t)
	keys := s.addKeys(20, plenty())
	rows, callers := badRows(), badCallers()
	pairs := make([][]*key, len(rows))
	owners := make([]authz.OrganizationID, len(rows))
	for i, b := range rows {
		owners[i], pairs[i] = s.elsewhere(2, b.name)
	}
	const asked = 8 // good keys that nobody has asked for, beside each bad one
	cold := s.addKeys(asked*len(rows), plenty())
	replicas := s.start(3)
	s.warm(replicas, keys)
	s.db(func(db *sqlx.DB) {
		if _, err := db.ExecContext(t.Context(), dropRules); err != nil {
			t.Fatal(err)
		}
		b := &badRowTrial{site: s, db: db, replicas: replicas}
		b.load = s.startLoad(plan{to: replicas, keys: keys, rate: either(t, 300, 40)})
		for i, row := range rows {
			b.key(row, owners[i], pairs[i][0], pairs[i][1], cold[asked*i:asked*(i+1)])
		}
		t.exact(len(b.broken) == 0, "rows of keys and organizations that concern others: %d of %d %q", len(b.broken), len(rows), b.broken)
		t.timed(len(b.served.except("allowed")) == 0, "good keys looked up together with bad ones: %v", b.served)
		t.exact(true, "those whom they are about, where they are not just odd: none allowed; all of them: %v", b.answered)
		b.broken, b.answered = nil, nil
		for _, row := range callers {
			b.caller(row, keys[0])
		}
		t.exact(len(b.broken) == 0, "rows of callers that concern others: %d of %d %q", len(b.broken), len(callers), b.broken)
		t.exact(true, "and those: %v", b.answered)
		b.fresh(keys, cold)
	})
}

// key stores a bad row and asks for its key together with others.
func (b *badRowTrial) key(row badRow, owner authz.OrganizationID, bad, beside *key, cold []*key) {
	b.Helper()
	names := map[string]any{":key": bad.id, ":org": owner}
	if !b.store(row, names) {
		b.forget(row, `DELETE FROM key_secrets WHERE key_id = :key; DELETE FROM api_keys WHERE id = :key`, names)
		return
	}
	before := len(b.served.except("allowed"))
	defer func() {
		if lost := len(b.served.except("allowed")) - before; lost > 0 {
			b.note("%s: %d good keys not allowed", row.name, lost)
		}
	}()
	for _, r := range b.replicas {
		all := b.run(plan{to: []*replica{r}, keys: append([]*key{bad, beside}, cold...), rate: 5000, connections: len(cold) + 2})
		for _, a := range all {
			switch a.key {
			case bad:
				b.own(row, row.odd || !a.allow, a)
			case beside:
				if row.whole {
					b.own(row, !a.allow, a)
				} else {
					b.served = append(b.served, a)
				}
			default:
				b.served = append(b.served, a)
			}
		}
	}
}

// own keeps what was answered to those whom a bad row is about.
func (b *badRowTrial) own(row badRow, kept bool, a *answer) {
	b.Helper()
	b.note("%s: %s", row.name, a.outcome())
	if b.answered = append(b.answered, a); !kept {
		b.exact(false, "%s: %s", row.name, a.outcome())
	}
}

// caller stores a bad row of a caller, which nobody but itself may feel.
func (b *badRowTrial) caller(row badRow, k *key) {
	b.Helper()
	made, err := b.management(b.replicas[0]).CreateCaller(b.Context(), admin.CallerCreate{Name: row.name, Environments: []admin.Environment{admin.Live}})
	if err != nil {
		b.exact(false, "a caller cannot be made: %v", err)
		return
	}
	token := authz.NewSecret(*made.Secret)
	b.keep(token)
	var id authz.CallerID
	if err := id.UnmarshalText([]byte(made.Caller.ID)); err != nil {
		b.Fatal(err)
	}
	names := map[string]any{":caller": id}
	if !b.store(row, names) {
		b.forget(row, `DELETE FROM caller_tokens WHERE caller_id = :caller; DELETE FROM callers WHERE id = :caller`, names)
		return
	}
	theirs := &key{secret: k.secret, id: k.id, stored: true, request: bytes.Replace(k.request, []byte(b.site.caller.Reveal()), []byte(token.Reveal()), 1)}
	all := b.once(b.replicas, theirs)
	for _, a := range all {
		b.own(row, row.odd || !a.allow, a)
	}
}

// store writes a bad row, and tells whether every replica applies it and lives.
func (b *badRowTrial) store(row badRow, names map[string]any) bool {
	b.Helper()
	n := b.change(row.sql, names)
	applied := within(either(b.trial, 5*time.Second, 20*time.Second), func() bool {
		for _, r := range b.replicas {
			if at, err := r.sample(b.Context(), "keystile_store_revision"); err != nil || at < float64(n) {
				return r.hasEnded() // there is nothing to wait for
			}
		}
		return true
	})
	return applied && !slices.ContainsFunc(b.replicas, (*replica).hasEnded)
}

// change runs statements as a change of management's would be.
func (b *badRowTrial) change(statements string, names map[string]any) (n int64) {
	b.Helper()
	tx, err := b.db.BeginTxx(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := tx.GetContext(b.Context(), &n, `UPDATE revision SET n = n + 1 RETURNING n`); err != nil {
		b.Fatal(err)
	}
	statements = strings.ReplaceAll(statements, ":n ", strconv.FormatInt(n, 10)+" ")
	for name, id := range names {
		var text string
		if err := tx.GetContext(b.Context(), &text, `SELECT $1::uuid::text`, id); err != nil {
			b.Fatal(err)
		}
		statements = strings.ReplaceAll(statements, name, "'"+text+"'")
	}
	_, err = tx.ExecContext(b.Context(), statements+`; NOTIFY keystile_changes`)
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		b.Fatalf("%s: %v", statements, err)
	}
	return n
}

// forget removes a row that others feel, and has as many replicas serve as before.
func (b *badRowTrial) forget(row badRow, statements string, names map[string]any) {
	b.Helper()
	ended := 0
	for _, r := range b.replicas {
		if r.hasEnded() {
			ended++
		}
	}
	b.broken = append(b.broken, fmt.Sprintf("%s (%d of %d replicas ended, the others follow no changes)", row.name, ended, len(b.replicas)))
	b.change(statements, names)
	for i, r := range b.replicas {
		if r.hasEnded() {
			b.load.leave(r)
			b.replicas[i] = b.start(1)[0]
			b.load.join(b.replicas[i])
		}
	}
	b.eventually("replicas follow changes again", func() bool {
		return !slices.ContainsFunc(b.replicas, func(r *replica) bool { _, word := r.readiness(b.trial); return word != "ready" })
	})
}

// fresh starts a replica on what is stored by now.
func (b *badRowTrial) fresh(keys, cold []*key) {
	b.Helper()
	end := b.tryServe(nil)
	b.exact(end.code == -1, "a replica starts on all the others: exit code %d (-1 is ready) %.200s", end.code, end.stderr)
	if end.code != -1 {
		return
	}
	r := b.start(1)
	code, word := r[0].readiness(b.trial)
	b.exact(code == 200 && word == "ready", "its /readyz is %d %s", code, word)
	good := append(slices.Clone(keys), cold...)
	b.exact(within(patience, func() bool {
		return b.run(plan{to: r, keys: good, rate: 400}).allowed() == len(good)
	}), "and it allows all %d good keys", len(good))
	served := b.load.stop()
	b.exact(len(served) > 0 && len(served.except("allowed", "unavailable", "no answer")) == 0, "good keys that were in memory, under load: %v", served)
	b.timed(len(served.except("allowed")) == 0, "of which not allowed: %v", served.except("allowed"))
}
