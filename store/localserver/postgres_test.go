package localserver

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestPostgres_KeepsDataAndPasswordAtTheNextStart(t *testing.T) {
	dir := filepath.Join(tempDir(t), "postgres")
	p := startPostgres(t, PostgresOptions{Dir: dir})
	if err := p.CreateDatabase(t.Context(), "kept", "", ""); err != nil {
		t.Fatal(err)
	}
	mustQuery(t, p.URL("kept"), "CREATE TABLE t AS SELECT 'here'::text AS v; SELECT 'done'")
	stop(t, p)
	await(t, "the end of a stopped server", p.Done())
	p = startPostgres(t, PostgresOptions{Dir: dir})
	if got := mustQuery(t, p.URL("kept"), "SELECT v FROM t"); got != "here" {
		t.Errorf("found %q", got)
	}
	stop(t, p)
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir, Password: "another", FsyncOff: true})
	if err == nil || !strings.Contains(err.Error(), "another password") || strings.Contains(err.Error(), password()) {
		t.Errorf("started with another password: %v", err)
	}
	stop(t, startPostgres(t, PostgresOptions{Dir: dir})) // the failed start has left nothing behind
}

func TestCreateDatabase_CanBeRepeatedAndKeepsRolesApart(t *testing.T) {
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres")})
	if err := p.CreateDatabase(t.Context(), "keystile", "", ""); err != nil {
		t.Fatal(err)
	}
	for _, pw := range []string{"first", `it's "second"`[:4] + "second"} {
		if err := p.CreateDatabase(t.Context(), "examples", "examples", pw); err != nil {
			t.Fatal(err)
		}
		if got := mustQuery(t, p.UserURL("examples", "examples", pw), "CREATE TABLE IF NOT EXISTS t (); SELECT current_user"); got != "examples" {
			t.Errorf("we are %q", got)
		}
		if _, err := query(t, p.UserURL("keystile", "examples", pw), "SELECT 'in'"); err == nil {
			t.Error("a role gets into another's database")
		}
	}
	if _, err := query(t, p.UserURL("examples", "examples", "first"), "SELECT 'in'"); err == nil {
		t.Error("the old password still does")
	}
	log, err := os.ReadFile(p.process.logFile)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "second") || strings.Contains(string(log), password()) {
		t.Error("a password is in the log")
	}
}

func TestPostgres_NoPasswordInCommandLineEnvironmentOrFiles(t *testing.T) {
	t.Setenv("KEYSTILE_PEPPERS", "not-for-children")
	dir := filepath.Join(tempDir(t), "postgres")
	p := startPostgres(t, PostgresOptions{Dir: dir})
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID()), file))
		if errors.Is(err, os.ErrNotExist) {
			continue // no such thing here
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), password()) || strings.Contains(string(text), "not-for-children") {
			t.Errorf("a secret is in the server's %s", file)
		}
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), password()) {
			t.Errorf("a password is in %s", path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) { // Postgres moves its files about
		t.Fatal(err)
	}
}

func TestPostgres_APortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	_, err = StartPostgres(t.Context(), PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres"), Port: port, FsyncOff: true})
	var used *PortInUseError
	if !errors.As(err, &used) || used.Port != port || !strings.Contains(err.Error(), strconv.Itoa(port)) {
		t.Errorf("started on a port in use: %v", err)
	}
	// The server's own finding, when the port is taken after ours.
	_, err = StartRedis(t.Context(), RedisOptions{Dir: tempDir(t), Port: port})
	if !errors.As(err, &used) || used.Port != port {
		t.Errorf("Redis started on a port in use: %v", err)
	}
}

func TestPostgres_MissingBinariesSayWhatToInstall(t *testing.T) {
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres"), Programs: t.TempDir()})
	var missing *MissingError
	if !errors.As(err, &missing) {
		t.Fatalf("without binaries: %v", err)
	}
	for _, want := range []string{"Debian/Ubuntu: apt-get install postgresql", "Fedora: dnf install postgresql-server", "macOS: brew install postgresql"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	_, err = StartRedis(t.Context(), RedisOptions{Dir: tempDir(t), Program: filepath.Join(t.TempDir(), "redis-server")})
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "apt-get install redis-server") {
		t.Errorf("without a Redis: %v", err)
	}
}

func TestPostgres_DataOfAnotherVersionIsNotTouched(t *testing.T) {
	dir := filepath.Join(tempDir(t), "postgres")
	stop(t, startPostgres(t, PostgresOptions{Dir: dir}))
	version := filepath.Join(dir, "data", "PG_VERSION")
	installed, err := os.ReadFile(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(version, []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = StartPostgres(t.Context(), PostgresOptions{Dir: dir, Password: password()})
	var other *VersionError
	if !errors.As(err, &other) || other.Data != 9 || len(other.Installed) == 0 {
		t.Errorf("started on data of version 9: %v", err)
	}
	if err := os.WriteFile(version, installed, 0o600); err != nil {
		t.Fatal(err)
	}
	startPostgres(t, PostgresOptions{Dir: dir})
}

func TestPostgres_ADirectoryInUseOrOfSomebodyElseIsRefused(t *testing.T) {
	dir := filepath.Join(tempDir(t), "postgres")
	startPostgres(t, PostgresOptions{Dir: dir})
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir, Password: password()})
	var used *InUseError
	if !errors.As(err, &used) || used.PID != os.Getpid() {
		t.Errorf("two servers in one directory: %v", err)
	}
	foreign := tempDir(t)
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartPostgres(t.Context(), PostgresOptions{Dir: foreign}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with something else in it: %v", err)
	}
}

func TestPostgres_AClosedParentIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		return // servers then run as ourselves, who have made the directory
	}
	closed := tempDir(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: filepath.Join(closed, "postgres")})
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) || unreachable.Closed != closed {
		t.Errorf("started where its user cannot go: %v", err)
	}
	r := startTestRedis(t, RedisOptions{Dir: filepath.Join(closed, "redis")}) // which keeps nothing, and goes elsewhere
	if _, err := r.Do(t.Context(), "PING"); err != nil {
		t.Error(err)
	}
	stop(t, r)
	if _, err := os.Lstat(r.data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", r.data, err)
	}
}

func TestPostgres_ALongDirectoryStillHasASocket(t *testing.T) {
	dir := filepath.Join(tempDir(t), strings.Repeat("long/", 30), "postgres")
	p := startPostgres(t, PostgresOptions{Dir: dir})
	if got := mustQuery(t, p.SocketURL("postgres"), "SELECT 'in'"); got != "in" {
		t.Errorf("got %q", got)
	}
	stop(t, p)
	if _, err := os.Lstat(p.sockets); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", p.sockets, err)
	}
}

func TestPostgres_StopEndsItAlsoWhenItDoesNotReact(t *testing.T) {
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres")})
	if err := p.process.os.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stop(t, p)
	await(t, "the end of a server that was stopped", p.Done())
	// Without any patience.
	p = startPostgres(t, PostgresOptions{Dir: p.home.dir})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of a killed server", p.Done())
	if isAlive(p.PID()) {
		t.Error("it still runs")
	}
	startPostgres(t, PostgresOptions{Dir: p.home.dir}) // it recovers
}

func TestPostgres_DoneTellsOfAnEndByItself(t *testing.T) {
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres")})
	r := startTestRedis(t, RedisOptions{Dir: tempDir(t)})
	for _, pid := range []int{p.PID(), r.PID()} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the end of a killed Postgres", p.Done())
	await(t, "the end of a killed Redis", r.Done())
}

func TestPostgres_KeepsWhatItHasCommittedWhenItIsKilled(t *testing.T) {
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres")})
	mustQuery(t, p.URL("postgres"), "CREATE TABLE t (v text); CHECKPOINT; SELECT 'done'")
	mustQuery(t, p.URL("postgres"), "INSERT INTO t VALUES ('here') RETURNING v")
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of a killed Postgres", p.Done())
	stop(t, p)
	p = startPostgres(t, PostgresOptions{Dir: p.home.dir})
	if got := mustQuery(t, p.URL("postgres"), "SELECT count(*)::text FROM t"); got != "1" {
		t.Errorf("found %s of 1 row", got)
	}
}

func TestStartPostgres_EndedContextLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(tempDir(t), "postgres")
	if _, err := StartPostgres(ctx, PostgresOptions{Dir: dir, Password: password(), FsyncOff: true}); err == nil {
		t.Fatal("started after its context had ended")
	}
	startPostgres(t, PostgresOptions{Dir: dir})
}

func TestServers_EndWithAKilledParent(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return // only Linux can do that; elsewhere the next start does: see the next test
	}
	dir := tempDir(t)
	holder, servers := holdElsewhere(t, dir)
	kill(t, holder)
	awaitEnd(t, servers.Postgres)
	awaitEnd(t, servers.Redis)
	startPostgres(t, PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	startTestRedis(t, RedisOptions{Dir: filepath.Join(dir, "redis")})
}

func TestServers_LeftRunningAreEndedAtTheNextStart(t *testing.T) {
	dir := tempDir(t)
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	r := startTestRedis(t, RedisOptions{Dir: filepath.Join(dir, "redis")})
	for _, pid := range []int{p.PID(), r.PID()} { // they do not even react
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	// As if we had been killed, and the kernel had not ended them.
	p.home.close()
	r.home.close()
	again := startPostgres(t, PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	if got := mustQuery(t, again.URL("postgres"), "SELECT 'in'"); got != "in" {
		t.Errorf("got %q", got)
	}
	startTestRedis(t, RedisOptions{Dir: filepath.Join(dir, "redis")})
	await(t, "the end of the Postgres that was left", p.Done())
	await(t, "the end of the Redis that was left", r.Done())
}

func TestPostgres_AFailedStartGivesItsWords(t *testing.T) {
	dir := filepath.Join(tempDir(t), "postgres")
	stop(t, startPostgres(t, PostgresOptions{Dir: dir}))
	if err := os.Remove(filepath.Join(dir, dataName, "global", "pg_control")); err != nil {
		t.Fatal(err)
	}
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir, Password: password()})
	var ended *StartError
	if !errors.As(err, &ended) || !strings.Contains(ended.Said, "pg_control") {
		t.Errorf("started without its control file: %v", err)
	}
}

func TestServers_AForeignProcessWithTheOldIDIsLeftAlone(t *testing.T) {
	dir := tempDir(t)
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	stop(t, p)
	// As the same user, so that Postgres itself could take it for the server, and
	// with a telling name and directory, one at a time.
	sleeper := filepath.Join(dir, "postgres-redis")
	text, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sleeper, text, 0o755); err != nil {
		t.Fatal(err)
	}
	as, err := chooseAccount(filepath.Join(p.home.dir, dataName))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ program, dir string }{{"/bin/sleep", filepath.Join(p.home.dir, dataName)}, {sleeper, "/"}} {
		foreign := exec.CommandContext(t.Context(), c.program, "600")
		foreign.Dir, foreign.SysProcAttr = c.dir, as.attributes(syscall.SIGKILL)
		if err := foreign.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = foreign.Wait(); close(ended) }()
		pid := strconv.Itoa(foreign.Process.Pid)
		pidFile := filepath.Join(p.home.dir, dataName, "postmaster.pid")
		if err := os.WriteFile(pidFile, []byte(pid+"\n"+filepath.Join(p.home.dir, dataName)+"\n1\n1\n\n\n\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := as.give(pidFile); err != nil {
			t.Fatal(err)
		}
		again := startPostgres(t, PostgresOptions{Dir: p.home.dir})
		r := startTestRedis(t, RedisOptions{Dir: filepath.Join(dir, "redis")})
		stop(t, r)
		if err := os.WriteFile(filepath.Join(dir, "redis", redisPIDs), []byte(pid+" 6379\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		stop(t, startTestRedis(t, RedisOptions{Dir: filepath.Join(dir, "redis")}))
		select {
		case <-ended:
			t.Fatalf("%s was ended", c.program)
		default:
		}
		stop(t, again)
		_ = foreign.Process.Kill()
		await(t, "the end of a foreign process", ended)
	}
}

func TestPostgresDirs_PathFirstThenNewest(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"bin/initdb", "bin/postgres", "only/initdb"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "link"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "bin", "initdb"), filepath.Join(dir, "link", "initdb")); err != nil {
		t.Fatal(err)
	}
	path := strings.Join([]string{"relative", filepath.Join(dir, "only"), filepath.Join(dir, "link")}, string(os.PathListSeparator))
	if got := postgresDirs(path); len(got) == 0 || got[0] != filepath.Join(dir, "bin") {
		t.Errorf("found %v", got)
	}
	if lastNumber("/usr/lib/postgresql/9.6/bin") >= lastNumber("/usr/lib/postgresql/15/bin") {
		t.Error("9.6 is newer than 15")
	}
}
