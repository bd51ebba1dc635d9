package origin

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	someRego = "package a\n\nx := 1\n"
	otherRe  = "package a\n\nx := 2\n"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watched is a directory that is watched from what it is now on.
func watched(t *testing.T, dir string) <-chan Version {
	t.Helper()
	d := NewDirectory(dir)
	d.Begin(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	versions, done := make(chan Version, 16), make(chan struct{})
	go func() {
		defer close(done)
		d.Watch(ctx, func(_ context.Context, v Version) bool { versions <- v; return true })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return versions
}

// next is the version that is handed over next.
func next(t *testing.T, versions <-chan Version) Version {
	t.Helper()
	select {
	case v := <-versions:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is handed over")
	}
	return Version{}
}

// text waits for a version in which a file has this text.
func text(t *testing.T, versions <-chan Version, file, want string) Version {
	t.Helper()
	for {
		if v := next(t, versions); v.Source != nil && v.Source.Files()[file] == want {
			return v
		}
	}
}

func TestDirectory_AnEditIsHandedOver(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), someRego)
	versions := watched(t, dir)

	write(t, filepath.Join(dir, "a.rego"), otherRe)
	text(t, versions, "a.rego", otherRe)

	write(t, filepath.Join(dir, "new", "deep", "b.rego"), someRego) // in a folder that is new
	text(t, versions, "new/deep/b.rego", someRego)
	write(t, filepath.Join(dir, "new", "deep", "b.rego"), otherRe) // which is watched from then on
	text(t, versions, "new/deep/b.rego", otherRe)

	// As editors and tools save: beside it, and then by its name.
	write(t, filepath.Join(dir, "a.rego.tmp"), someRego)
	if err := os.Rename(filepath.Join(dir, "a.rego.tmp"), filepath.Join(dir, "a.rego")); err != nil {
		t.Fatal(err)
	}
	text(t, versions, "a.rego", someRego)

	if err := os.RemoveAll(filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	for v := next(t, versions); v.Source == nil || len(v.Source.Files()) != 1; v = next(t, versions) {
	}
}

func TestDirectory_WhatIsNoPartOfThePolicyIsNothingNew(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), someRego)
	before := NewDirectory(dir).Read(t.Context()).Source.Revision()
	for _, name := range []string{".a.rego.swp", "a.rego~", "4913", "#a.rego#", ".git/HEAD.rego", "README.md"} {
		write(t, filepath.Join(dir, name), "x")
	}
	v := NewDirectory(dir).Read(t.Context())
	if v.Err != nil || v.Source.Revision() != before {
		t.Errorf("%v, %v", v.Err, v.Source)
	}
}

// Kubernetes mounts a ConfigMap as links into a folder that a link leads to, and swaps that.
func TestDirectory_ASwappedLinkIsHandedOverAsAWhole(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "..1", "keystile", "a.rego"), someRego)
	write(t, filepath.Join(dir, "..1", "b.rego"), someRego)
	swap := func(to string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap("..1")
	for _, name := range []string{"keystile", "b.rego"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if v := NewDirectory(dir).Read(t.Context()); v.Err != nil || len(v.Source.Files()) != 2 {
		t.Fatalf("%v, %v", v.Err, v.Source)
	}
	versions := watched(t, dir)
	write(t, filepath.Join(dir, "..2", "keystile", "a.rego"), otherRe)
	write(t, filepath.Join(dir, "..2", "b.rego"), otherRe)
	swap("..2")
	v := text(t, versions, "b.rego", otherRe)
	if v.Source.Files()["keystile/a.rego"] != otherRe {
		t.Errorf("a mixture was handed over: %v", v.Source.Files())
	}
}

// git-sync and deployment tools have the directory itself be a link.
func TestDirectory_MayBeALinkItself(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "1", "a.rego"), someRego)
	write(t, filepath.Join(dir, "2", "a.rego"), otherRe)
	link := filepath.Join(dir, "current")
	if err := os.Symlink("1", link); err != nil {
		t.Fatal(err)
	}
	versions := watched(t, link)
	if err := os.Symlink("2", link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	text(t, versions, "a.rego", otherRe)
}

// What a link leads to within would not be read, and nobody would know.
func TestDirectory_ALinkToAFolderWithinIsAnError(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), someRego)
	write(t, filepath.Join(elsewhere, "b.rego"), otherRe)
	if err := os.Symlink(elsewhere, filepath.Join(dir, "rules")); err != nil {
		t.Fatal(err)
	}
	if v := NewDirectory(dir).Read(t.Context()); v.Err == nil || !strings.Contains(v.Err.Error(), "rules") || !strings.Contains(v.Err.Error(), "link to a folder") {
		t.Errorf("%+v", v)
	}
}

// What has changed by the time that it was tried was not what is there.
func TestDirectory_TellsWhetherItIsStillThere(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), someRego)
	versions := watched(t, dir)
	write(t, filepath.Join(dir, "a.rego"), otherRe)
	v := next(t, versions)
	if !v.Still() {
		t.Error("it has not changed, and is said not to be there")
	}
	write(t, filepath.Join(dir, "a.rego"), someRego+someRego[len("package a\n"):])
	if v.Still() {
		t.Error("it has changed, and is said to be there still")
	}
}

func TestDirectory_WhatCannotBeReadIsHandedOverAsSuch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	if v := NewDirectory(dir).Read(t.Context()); v.Err == nil || v.Source != nil {
		t.Error("a directory that is not there was read")
	}
	versions := watched(t, dir)
	write(t, filepath.Join(dir, "a.rego"), someRego)
	text(t, versions, "a.rego", someRego)
	write(t, filepath.Join(dir, "b.json"), "{}")
	for v := next(t, versions); v.Err == nil; v = next(t, versions) {
	}
	if err := os.Remove(filepath.Join(dir, "b.json")); err != nil {
		t.Fatal(err)
	}
	text(t, versions, "a.rego", someRego)
}

func TestDirectory_WhatCouldNotBeTriedIsHandedOverAgain(t *testing.T) {
	d := NewDirectory(t.TempDir())
	write(t, filepath.Join(d.path, "a.rego"), someRego)
	ctx, cancel := context.WithCancel(t.Context())
	times := 0
	d.Watch(ctx, func(context.Context, Version) bool {
		if times++; times == 3 {
			cancel()
		}
		return false
	})
	if times != 3 {
		t.Errorf("it was handed over %d times", times)
	}
}

// A pipe that nobody writes to would be read for ever.
func TestDirectory_OnlyRegularFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), someRego)
	if err := syscall.Mkfifo(filepath.Join(dir, "b.rego"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := NewDirectory(dir).Read(t.Context()); v.Err == nil || !strings.Contains(v.Err.Error(), "b.rego") {
		t.Errorf("%v", v)
	}
}

func TestDirectory_NamesTheTestsThatMayFail(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), someRego)
	write(t, filepath.Join(dir, acceptFile), "# gone with the rule\ndata.a_test.test_x # yes\n\n  data.b_test.*\n")
	v := NewDirectory(dir).Read(t.Context())
	if v.Err != nil || !slices.Equal(v.AcceptRemoved, []string{"data.a_test.test_x", "data.b_test.*"}) {
		t.Errorf("%v, %v", v.AcceptRemoved, v.Err)
	}
}
