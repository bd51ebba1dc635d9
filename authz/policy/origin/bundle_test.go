package origin

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz/policy/bundle"
)

func TestBundle_ANewVersionIsHandedOverOnce(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	s.publish(archiveOf(t, key, 1, someRego))
	f := follow(t, s.URL+"/bundle.tar.gz", key.Keys(), t.TempDir())
	if rego, v := f.next(t); rego != someRego || v.Err != nil || len(v.AcceptRemoved) != 1 {
		t.Fatalf("%+v", v)
	}
	f.quiet(t, s)
	s.publish(archiveOf(t, key, 2, otherRe))
	if rego, v := f.next(t); rego != otherRe || v.Err != nil {
		t.Fatalf("%+v", v)
	}
	f.quiet(t, s)
	if _, downloads := s.counts(); downloads != 2 {
		t.Errorf("two bundles were sent %d times", downloads)
	}
	until(t, "its version is told", func() bool { return f.State().Version == 2 })
	if state := f.State(); state.Error != "" || time.Since(state.ContactAt) > time.Minute || state.URL != s.URL+"/bundle.tar.gz" {
		t.Errorf("%+v", state)
	}
}

// What is refused is fetched once, the last good one stays the measure, and what is mended is
// taken.
func TestBundle_WhatMustNotBeInForceIsHandedOverAsSuch(t *testing.T) {
	s, key, other := newBundleServer(t), newBundleSigner(t, "k"), newBundleSigner(t, "other")
	forger := newBundleSigner(t, "k")
	good := archiveOf(t, key, 5, someRego)
	s.publish(good)
	f := follow(t, s.URL+"/b", key.Keys(), t.TempDir())
	if _, v := f.next(t); v.Err != nil {
		t.Fatal(v.Err)
	}
	for _, c := range []struct {
		name     string
		archive  []byte
		says     string
		revision bool
	}{
		{"unsigned", archiveOf(t, nil, 6, otherRe), "not signed", false},
		{"by an unknown key", archiveOf(t, other, 6, otherRe), `"other"`, false},
		{"by another key of that name", archiveOf(t, forger, 6, otherRe), "does not hold", false},
		{"half of it", good[:len(good)/2], "EOF", false},
		{"too large", make([]byte, bundle.MaxArchive+1000), "more than", false},
		{"an older version", archiveOf(t, key, 4, otherRe), "version 4 is lower than 5", true},
		{"an older version with the same files", archiveOf(t, key, 4, someRego), "version 4 is lower than 5", true},
		{"the same version with other files", archiveOf(t, key, 5, otherRe), "other files", true},
	} {
		_, before := s.counts()
		s.publish(c.archive)
		_, v := f.next(t)
		if v.Err == nil || !strings.Contains(v.Err.Error(), c.says) || (v.Revision() != "") != c.revision {
			t.Errorf("%s: %v, revision %q; want it to say %q", c.name, v.Err, v.Revision(), c.says)
		}
		f.quiet(t, s)
		if _, downloads := s.counts(); downloads != before+1 {
			t.Errorf("%s: it was sent %d times", c.name, downloads-before)
		}
		if state := f.State(); state.Version != 5 || state.Error != "" {
			t.Errorf("%s: %+v", c.name, state)
		}
	}
	// The one in force again: it is nothing to refuse.
	s.publish(good)
	if rego, v := f.next(t); v.Err != nil || rego != someRego {
		t.Errorf("%+v", v)
	}
	s.publish(archiveOf(t, key, 6, otherRe))
	if rego, v := f.next(t); v.Err != nil || rego != otherRe {
		t.Errorf("%+v", v)
	}
}

func TestBundle_ARefusedVersionCanBeMendedUnderItsNumber(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	s.publish(archiveOf(t, key, 1, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), dir)
	f.next(t)
	f.says(refusedByTests)
	s.publish(archiveOf(t, key, 2, otherRe))
	f.next(t)
	f.quiet(t, s)
	if p, err := f.Kept(); err != nil || p.Version != 1 {
		t.Errorf("what was refused is kept: %v, %v", p, err)
	}
	f.says(nil)
	s.publish(archiveOf(t, key, 2, otherRe+"\ny := 1\n"))
	if _, v := f.next(t); v.Err != nil {
		t.Error(v.Err)
	}
}

func TestBundle_WhatCouldNotBeTriedIsHandedOverAgainAndThenKept(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	s.publish(archiveOf(t, key, 1, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), t.TempDir())
	f.next(t)
	f.says(func(Version) error { return errors.New("no process could be started") })
	s.publish(archiveOf(t, key, 2, otherRe))
	for range 3 {
		if rego, _ := f.next(t); rego != otherRe {
			t.Fatal(rego)
		}
		if f.State().Version != 1 {
			t.Fatal("what was not tried counts as in force")
		}
	}
	s.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	f.says(nil) // it can be tried now, and the server is not needed for that
	until(t, "it is in force", func() bool { return f.State().Version == 2 })
	if _, downloads := s.counts(); downloads != 2 {
		t.Errorf("two bundles were sent %d times", downloads)
	}
}

func TestBundle_ARestartDoesWithoutTheServer(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	s.publish(archiveOf(t, key, 5, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), dir)
	f.next(t)
	s.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	f = f.again(t)
	if rego, v := f.next(t); rego != someRego || v.Err != nil {
		t.Fatalf("%+v", v)
	}
	state := f.State()
	if state.Version != 5 || !strings.Contains(state.Error, "503") || state.FailingSince.IsZero() || !state.ContactAt.IsZero() || state.StorageError != "" {
		t.Errorf("%+v", state)
	}
	info, err := os.Stat(f.keptAt)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("beside what is kept there is more: %v", left)
	}
	// An older one that was signed once is no newer for the restart.
	s.publish(archiveOf(t, key, 4, otherRe))
	if _, v := f.next(t); v.Err == nil || !strings.Contains(v.Err.Error(), "version 4 is lower than 5") {
		t.Errorf("%+v", v)
	}
}

// Another version of the program may refuse what was in force before it; it is no reason to
// take something older.
func TestBundle_WhatWasKeptIsTheMeasureEvenWhenItIsRefused(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	s.publish(archiveOf(t, key, 5, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), dir)
	f.next(t)
	f.stop()
	s.publish(archiveOf(t, key, 4, otherRe))
	b, err := NewBundle(f.options)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var handed []Version
	err = b.Begin(t.Context(), func(_ context.Context, v Version) error {
		handed = append(handed, v)
		return refusedByTests(v)
	})
	if err != nil || len(handed) != 2 || handed[0].Err != nil || handed[1].Err == nil || !strings.Contains(handed[1].Err.Error(), "lower than 5") {
		t.Errorf("%v, %+v", err, handed)
	}
}

// A bundle that a key on its way out has signed is published again, signed by the next one.
func TestBundle_ASignatureCanBeReplaced(t *testing.T) {
	s, before, after, dir := newBundleServer(t), newBundleSigner(t, "before"), newBundleSigner(t, "after"), t.TempDir()
	keys := before.Keys()
	s.publish(archiveOf(t, before, 5, someRego))
	f := follow(t, s.URL+"/b", keys, dir)
	f.next(t)
	f.stop()
	s.publish(archiveOf(t, after, 5, someRego))
	f = follow(t, s.URL+"/b", after.Keys(), dir)
	if state := f.State(); state.Version != 5 || state.StorageError != "" {
		t.Errorf("%+v", state)
	}
	if p, err := f.Kept(); err != nil || p.KeyID != "after" {
		t.Errorf("%+v, %v", p, err)
	}
	if !strings.Contains(f.log.String(), `known are after`) {
		t.Errorf("that the kept one is not believed any more is not said: %s", f.log)
	}
}

func TestBundle_WhatWasKeptIsVerifiedAgain(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	s.publish(archiveOf(t, key, 5, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), dir)
	f.next(t)
	f.stop()
	whole, err := os.ReadFile(f.keptAt)
	if err != nil {
		t.Fatal(err)
	}
	s.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"cut off":          {whole[:len(whole)/2], "EOF"},
		"of somebody else": {archiveOf(t, newBundleSigner(t, "k"), 9, otherRe), "does not hold"},
		"empty":            {nil, "not gzipped"},
	} {
		if err := os.WriteFile(f.keptAt, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		f = f.again(t)
		f.quiet(t, s)
		state := f.State()
		if state.Version != 0 || !strings.Contains(state.StorageError, c.says) || !strings.Contains(f.log.String(), "cannot be used") {
			t.Errorf("%s: %+v", name, state)
		}
	}
	// Which version it was is known without it: nothing older takes its place.
	s.publish(archiveOf(t, key, 4, someRego))
	if _, v := f.next(t); v.Err == nil || !strings.Contains(v.Err.Error(), "version 4 is lower than 5") {
		t.Errorf("%+v", v)
	}
	// What is in force next does.
	s.publish(archiveOf(t, key, 6, otherRe))
	f.next(t)
	until(t, "it is kept", func() bool { return f.State().StorageError == "" && f.State().Version == 6 })
}

// Where nothing was kept, or what was kept is lost, the operator says what is too old.
func TestBundle_AVersionBelowTheConfiguredOneIsNotTaken(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	s.publish(archiveOf(t, key, 5, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), t.TempDir())
	f.next(t)
	f.stop()
	f.options.MinVersion = 6
	for where, dir := range map[string]string{"kept": f.options.StateDir, "published": t.TempDir()} {
		f.options.StateDir = dir
		f = f.again(t)
		if _, v := f.next(t); v.Err == nil || !strings.Contains(v.Err.Error(), "version 5 is lower than 6") {
			t.Errorf("%s: %+v", where, v)
		}
		if f.State().Version != 0 {
			t.Errorf("%s: it is in force: %+v", where, f.State())
		}
	}
	s.publish(archiveOf(t, key, 6, otherRe))
	if rego, v := f.next(t); rego != otherRe || v.Err != nil {
		t.Errorf("%+v", v)
	}
}

func TestBundle_WithoutServerAndStateNothingIsHandedOverUntilItComes(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	f := follow(t, s.URL+"/b", key.Keys(), t.TempDir())
	f.quiet(t, s)
	if state := f.State(); !strings.Contains(state.Error, "404") || state.Version != 0 {
		t.Errorf("%+v", state)
	}
	s.publish(archiveOf(t, key, 1, someRego))
	if rego, _ := f.next(t); rego != someRego {
		t.Error(rego)
	}
	until(t, "the server answers", func() bool { state := f.State(); return state.Error == "" && state.FailingSince.IsZero() })
	f.stop()
	if said := f.log.String(); strings.Count(said, "no policy bundle can be fetched") != 1 || strings.Count(said, "can be fetched again") != 1 {
		t.Errorf("the outage is not told once: %s", said)
	}
}

// While nothing can be kept the service goes on, says so, and keeps it later.
func TestBundle_WhatCannotBeKeptIsToldAndKeptLater(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	s.publish(archiveOf(t, key, 1, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), dir)
	f.next(t)
	until(t, "it is kept", func() bool { _, err := os.Stat(f.keptAt); return err == nil })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.publish(archiveOf(t, key, 2, otherRe))
	f.next(t)
	until(t, "it is told", func() bool {
		return strings.Contains(f.State().StorageError, "cannot be kept") && f.State().Version == 2
	})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	until(t, "it is kept", func() bool { return f.State().StorageError == "" })
	if p, err := f.Kept(); err != nil || p.Version != 2 {
		t.Errorf("%v, %v", p, err)
	}
}

// Replicas on one machine may share a folder: the one that is behind keeps nothing older.
func TestBundle_AnotherReplicasNewerOneIsNotReplaced(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	s.publish(archiveOf(t, key, 1, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), dir)
	f.next(t)
	until(t, "it is kept", func() bool { _, err := os.Stat(f.keptAt); return err == nil })
	if err := os.WriteFile(f.keptAt, archiveOf(t, key, 9, someRego), 0o600); err != nil {
		t.Fatal(err)
	}
	s.publish(archiveOf(t, key, 2, otherRe))
	f.next(t)
	s.asked(t, 3)
	if p, err := f.Kept(); err != nil || p.Version != 9 {
		t.Errorf("%v, %v", p, err)
	}
}
