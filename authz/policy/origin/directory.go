// Package origin fetches policies from where they are kept, and hands over whatever is new
// and whole: see directory.go and bundle.go.
package origin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/supportstation/keystile/authz/policy"
)

const (
	// pollEvery is the backstop behind notifications, which some file systems do not give.
	pollEvery = time.Second
	// settleFor is how long nothing may change before a directory is read: an editor that
	// saves writes several files, and a file in several steps. wholeFor is how long what was
	// read must stay as it is where nothing takes its time afterwards.
	settleFor = 75 * time.Millisecond
	wholeFor  = 150 * time.Millisecond
	// beginAttempts is how often a directory is read at first that changes meanwhile.
	beginAttempts = 10
	// settleMost is how long changes that go on keep a directory from being read.
	settleMost = time.Second
	// looksEach is how often files are read although nothing about them has changed: a tool
	// can keep size and time of what it replaces.
	looksEach = 10 * time.Second
	// acceptFile names, one a line, the tests of the policy in force that may fail.
	acceptFile = ".accept-removed-tests"
	// exportedPolicies is where in a folder `keystile policy export` writes the policy.
	exportedPolicies = "policies"
	// mountLink is what Kubernetes swaps when a mounted ConfigMap changes.
	mountLink = "..data"
)

// Directory is a folder with a policy in it.
type Directory struct {
	path string
	// seen is the signature of what was handed over last, revision its policy's, "" for what
	// could not be read.
	seen, revision string
}

// NewDirectory returns a directory; it need not be there yet.
func NewDirectory(path string) *Directory { return &Directory{path: path} }

// Version is a policy as its place had it at one moment.
type Version struct {
	Source *policy.Source
	// AcceptRemoved are the tests that may fail.
	AcceptRemoved []string
	// Still tells whether its place has it still; nil where that does not matter.
	Still func() bool
	// Err is why it must not be in force whatever it says; Source is nil when it could not even
	// be read.
	Err error
}

// Revision is that of the policy, "" for what could not be read.
func (v Version) Revision() string {
	if v.Source == nil {
		return ""
	}
	return v.Source.Revision()
}

// Read reads the policy that is there now.
func (d *Directory) Read(ctx context.Context) Version {
	root, err := d.root()
	if err != nil {
		return Version{Err: err}
	}
	fsys := os.DirFS(root)
	source, err := policy.ReadSource(ctx, fsys)
	if err != nil {
		if holdsExport(root) {
			err = fmt.Errorf("%s is what `keystile policy export` wrote, with capabilities.json and schemas for the stock opa; the policy is a folder in it: give %s",
				d.path, filepath.Join(d.path, exportedPolicies))
		}
		return Version{Err: err}
	}
	accepted, err := readAccepted(fsys)
	if err != nil {
		return Version{Err: err}
	}
	return Version{Source: source, AcceptRemoved: accepted}
}

// holdsExport tells whether a folder is what `keystile policy export` wrote a policy into.
func holdsExport(root string) bool {
	inside, err := os.Stat(filepath.Join(root, exportedPolicies))
	if err != nil || !inside.IsDir() {
		return false
	}
	_, err = os.Stat(filepath.Join(root, "capabilities.json"))
	return err == nil
}

// root is the folder itself, without the links that lead to it: all of a version is read
// from one folder, also when a link is swapped meanwhile.
func (d *Directory) root() (string, error) {
	for _, path := range []string{filepath.Join(d.path, mountLink), d.path} {
		root, err := filepath.EvalSymlinks(path)
		if err == nil {
			return root, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read the policy's directory: %w", err)
		}
	}
	return "", fmt.Errorf("the policy's directory %s is not there", d.path)
}

func readAccepted(fsys fs.FS) ([]string, error) {
	info, err := fs.Stat(fsys, acceptFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", acceptFile, err)
	}
	file, err := fsys.Open(acceptFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", acceptFile, err)
	}
	defer func() { _ = file.Close() }()
	var names []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), "#")
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", acceptFile, err)
	}
	return names, nil
}

// Begin reads the policy that is there, as a whole; Watch goes on from there.
func (d *Directory) Begin(ctx context.Context) Version {
	for range beginAttempts {
		if v, ok := d.whole(ctx, true); ok {
			return v
		}
	}
	return Version{Err: fmt.Errorf("the policy's directory %s goes on changing", d.path)}
}

// Again has Watch hand over what is there, though it was handed over before. It must not be
// called beside it.
func (d *Directory) Again() { d.seen = "" }

// Watch hands over the policy whenever the directory has become another one than it was
// handed over last, or at Begin, until ctx ends. What is half written is waited for: a
// directory is read when it has been still for a moment, and what is handed over can tell
// whether it is still so when it was tried.
//
// hand is called on this goroutine; while it runs, changes wait. When it returns false, the
// same is handed over again a moment later.
func (d *Directory) Watch(ctx context.Context, hand func(context.Context, Version) bool) {
	events, errs := make(chan fsnotify.Event), make(chan error)
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = watcher.Close() }()
		events, errs = watcher.Events, watcher.Errors
		d.watchFolders(watcher)
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			d.settle(ctx, events)
		case err := <-errs:
			_ = err // more happened than was told; what is there is looked at in any case
		case <-poll.C:
		}
		changed := d.signature() != d.seen
		if !changed && time.Since(looked) < looksEach {
			continue
		}
		if watcher != nil {
			d.watchFolders(watcher) // there may be new ones
		}
		before := d.revision
		v, ok := d.whole(ctx, false)
		if !ok {
			continue
		}
		looked = time.Now()
		if (changed || d.revision != before) && !hand(ctx, v) {
			d.seen = ""
		}
	}
}

// settle waits until nothing has happened for a moment.
func (d *Directory) settle(ctx context.Context, events <-chan fsnotify.Event) {
	still := time.NewTimer(settleFor)
	defer still.Stop()
	most := time.NewTimer(settleMost)
	defer most.Stop()
	for {
		select {
		case <-events:
			still.Reset(settleFor)
		case <-still.C:
			return
		case <-most.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// whole reads the directory; it is not ok while it changes under our eyes. Without wait that is
// left to who tries what was read, if it could be read at all.
func (d *Directory) whole(ctx context.Context, wait bool) (Version, bool) {
	before := d.signature()
	v := d.Read(ctx)
	v.Still = func() bool { return d.signature() == before }
	if wait || v.Err != nil {
		still := time.NewTimer(wholeFor)
		defer still.Stop()
		select {
		case <-still.C:
		case <-ctx.Done():
			return Version{}, false
		}
	}
	if d.signature() != before {
		return Version{}, false
	}
	d.seen, d.revision = before, v.Revision()
	return v, true
}

// watchFolders watches every folder of the policy, and what links lead to it.
func (d *Directory) watchFolders(watcher *fsnotify.Watcher) {
	// Of a folder that cannot be watched, the poll tells.
	_ = watcher.Add(filepath.Dir(d.path))
	_ = watcher.Add(d.path)
	root, err := d.root()
	if err != nil {
		return
	}
	folders := 0
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || !entry.IsDir():
			return nil //nolint:nilerr // what is gone meanwhile is not watched
		case path != root && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		}
		if folders++; folders > policy.MaxFiles {
			return fs.SkipAll
		}
		_ = watcher.Add(path)
		return nil
	})
}

// signature tells two states of the directory apart without reading its files.
func (d *Directory) signature() string {
	root, err := d.root()
	if err != nil {
		return err.Error()
	}
	var all strings.Builder
	all.WriteString(root)
	files := 0
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		hidden := path != root && strings.HasPrefix(filepath.Base(path), ".") && filepath.Base(path) != acceptFile
		switch {
		case err != nil:
			fmt.Fprintf(&all, "\n%s: %v", path, err)
			return nil
		case entry.IsDir() && hidden:
			return fs.SkipDir
		case hidden:
			return nil
		}
		base := filepath.Base(path)
		if ext := filepath.Ext(base); entry.IsDir() || ext != ".rego" && ext != ".yaml" && ext != ".yml" && ext != ".json" && base != acceptFile {
			return nil
		}
		if files++; files > 2*policy.MaxFiles {
			return fs.SkipAll
		}
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			fmt.Fprintf(&all, "\n%s %d %d", path, info.Size(), info.ModTime().UnixNano())
		}
		return nil
	})
	return all.String()
}
