package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// A replica that ends while Postgres takes nothing loses nothing where it has a folder: the next
// start writes what it had counted, once.
func TestUsage_WhatAnEndInAnOutageKeepsIsWrittenOnceByTheNextStart(t *testing.T) {
	at, dir := storetest.Migrated(t), filepath.Join(t.TempDir(), "state")
	peppers := storetest.Peppers(t, "p1")
	open := func(peppers authz.Peppers) *store.Store {
		t.Helper()
		s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: peppers, SpillDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	kept := func() (names []string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	s := open(peppers)
	add(t, s) // of which its pepper is known to the database
	c, now := newCounter(s, 5), time.Now()
	db.MustExec(`ALTER TABLE usage_batches RENAME TO usage_batches_away`)
	for i := range 40 {
		c.count(t, i%5, "/api/v1/tickets/{id}", "/api/v1/tickets/1", now)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if h := s.Health(); h.CountedUsage != 40 || h.StoredUsage != 0 || h.DroppedUsage != 0 {
		t.Errorf("%+v", h)
	}
	names := kept()
	if len(names) != 1 || !strings.HasSuffix(names[0], ".usage.json") {
		t.Fatalf("kept: %v", names)
	}
	path := filepath.Join(dir, names[0])
	whole, err := os.ReadFile(path)
	if info, statErr := os.Stat(path); err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v, %v", info, err, statErr)
	}
	// The outage goes on: it stays.
	if err := open(peppers).FlushUsage(t.Context()); err == nil || len(kept()) != 1 {
		t.Errorf("while nothing can be written: %v, kept %v", err, kept())
	}
	db.MustExec(`ALTER TABLE usage_batches_away RENAME TO usage_batches`)
	for again := range 3 {
		if again > 0 { // as if it could not have been taken away, or had been put back
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := open(peppers).FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := storetest.Count(t, at, `SELECT sum(requests)::int FROM usage_hours`); n != 40 || len(kept()) != 0 {
			t.Errorf("written %d times: %d counted, kept %v", again+1, n, kept())
		}
	}
	// What may be written already and is found when nobody knows any more is not written again.
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(strings.Replace(string(whole), `"at":"2`, `"at":"1`, 1), `"tried":false`, `"tried":true`)), 0o600); err != nil {
		t.Fatal(err)
	}
	db.MustExec(`DELETE FROM usage_batches`)
	if err := open(peppers).FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := storetest.Count(t, at, `SELECT sum(requests)::int FROM usage_hours`); n != 40 || len(kept()) != 0 {
		t.Errorf("found too late: %d counted, kept %v", n, kept())
	}
	// What was counted under other peppers, or is no such file, stays where it is.
	for _, text := range []string{strings.Replace(string(whole), "p1:", "p1:0", 1), "{"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(peppers).FlushUsage(t.Context()); err != nil || len(kept()) != 1 {
			t.Errorf("%.20q: %v, kept %v", text, err, kept())
		}
	}
}
