package localserver

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// MinPostgresVersion is the oldest PostgreSQL that is started.
const MinPostgresVersion = 14

func postgresMissing(found []string) *MissingError {
	return &MissingError{
		Program: fmt.Sprintf("PostgreSQL %d or newer", MinPostgresVersion),
		Install: []Install{
			{"Debian/Ubuntu", "apt-get install postgresql"},
			{"Fedora", "dnf install postgresql-server"},
			{"macOS", "brew install postgresql@17"},
		},
		Found: found,
	}
}

func redisMissing() *MissingError {
	return &MissingError{
		Program: "redis-server (or valkey-server)",
		Install: []Install{
			{"Debian/Ubuntu", "apt-get install redis-server"},
			{"Fedora", "dnf install valkey"},
			{"macOS", "brew install redis"},
		},
	}
}

// postgresDirs returns where initdb and postgres may be, best first: PATH, then
// where Debian, Fedora (also PGDG's packages), Homebrew and Postgres.app put them,
// newest version first. The order inside a pattern is by number, not by letter.
func postgresDirs(path string) []string {
	var dirs []string
	add := func(dir string) {
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range searchPath(path) {
		add(dir)
		// A link to initdb alone leads to the rest.
		if target, err := filepath.EvalSymlinks(filepath.Join(dir, "initdb")); err == nil {
			add(filepath.Dir(target))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/usr/libexec/postgresql*",
	} {
		found, _ := filepath.Glob(pattern) // fails for a bad pattern alone
		slices.SortFunc(found, func(a, b string) int { return cmp.Compare(lastNumber(b), lastNumber(a)) })
		for _, dir := range found {
			add(dir)
		}
	}
	return dirs
}

func findRedis(path string) (string, error) {
	dirs := append(searchPath(path), "/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin",
		"/opt/homebrew/opt/redis/bin", "/opt/homebrew/opt/valkey/bin", "/home/linuxbrew/.linuxbrew/bin", "/usr/libexec")
	for _, name := range []string{"redis-server", "valkey-server"} {
		for _, dir := range dirs {
			if file := filepath.Join(dir, name); executable(file) {
				return file, nil
			}
		}
	}
	return "", redisMissing()
}

// searchPath splits PATH. Relative entries are left out: what runs must not depend
// on the directory that somebody happens to be in.
func searchPath(path string) []string {
	return slices.DeleteFunc(filepath.SplitList(path), func(dir string) bool { return !filepath.IsAbs(dir) })
}

func executable(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

var digits = regexp.MustCompile(`\d+`)

func lastNumber(s string) int {
	all := digits.FindAllString(s, -1)
	if len(all) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(all[len(all)-1]) // digits; too many of them are 0
	return n
}

// postgresBinaries are one installed version.
type postgresBinaries struct {
	dir   string
	major int
}

// choosePostgres returns the first installation of the wanted major version; 0
// wants any that is new enough. Each is asked for its version as the user who will
// run it: root's own binaries may be out of that user's reach.
func choosePostgres(ctx context.Context, dirs []string, as account, data string, want int) (postgresBinaries, error) {
	var found []string
	var majors []int
	for _, dir := range dirs {
		major, err := postgresVersion(ctx, dir, as)
		switch {
		case err != nil:
			found = append(found, fmt.Sprintf("%s does not run as user %s: %v", dir, as.name, err))
		case want == 0 && major < MinPostgresVersion:
			found = append(found, fmt.Sprintf("%s is version %d", dir, major))
		case want == 0 || want == major:
			return postgresBinaries{dir, major}, nil
		}
		if err == nil && !slices.Contains(majors, major) {
			majors = append(majors, major)
		}
	}
	if want != 0 && len(majors) > 0 {
		return postgresBinaries{}, &VersionError{Dir: data, Data: want, Installed: majors}
	}
	return postgresBinaries{}, postgresMissing(found)
}

// postgresVersion reads "postgres (PostgreSQL) 15.8 (Debian 15.8-1)".
func postgresVersion(ctx context.Context, dir string, as account) (int, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version") //nolint:gosec // found by postgresDirs
	cmd.Dir, cmd.Env = "/", as.environment()
	cmd.SysProcAttr = as.attributes(0)
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("ask for its version: %w", err)
	}
	major, err := strconv.Atoi(digits.FindString(string(out)))
	if err != nil {
		return 0, fmt.Errorf("it does not tell its version")
	}
	return major, nil
}
