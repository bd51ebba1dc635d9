package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/store"
)

const (
	// asBenchServer makes the test binary serve one side of the comparison: bare or check.
	asBenchServer = "KEYSTILE_BENCH_SERVER"
	benchRounds   = 5
	benchRequests = 20_000
	benchWarmup   = 8_192
	// benchKeys are asked for in turn: of so many no verdict is remembered.
	benchKeys = 4096
	// benchConnections ask at once, each one request after the other.
	benchConnections = 8
	// The limit is as fast as policy may name it, so that everything is allowed.
	benchBurst = 600_000
)

// BenchmarkCheckAgainstBareHandler compares a full check (known key, policy, limit)
// with the least that an app would write itself: a bare Gin handler that reads
// strict JSON and asks redis_rate once on a plain client. Both run in processes of
// their own on loopback, in turns; the figures are medians of the rounds. A full check is
// one of many keys, whose verdict policy has to work out; "again" is one key that asks the
// same again, whose verdict is remembered.
func BenchmarkCheckAgainstBareHandler(b *testing.B) {
	env := testEnvironment(b)
	env["KEYSTILE_POLICY_DIR"] = benchPolicies(b)
	keys, token := benchData(b, env)
	bare := startBenchServer(b, "bare", env)
	check := startBenchServer(b, "check", env)
	var bareRequests, checkRequests [][]byte
	for i, key := range keys {
		bareRequests = append(bareRequests, benchRequest(bare.address, "/check", "",
			fmt.Sprintf(`{"key":"bench%d","method":"GET","path":"/api/v1/tickets"}`, i)))
		checkRequests = append(checkRequests, benchRequest(check.address, "/v1/check", token.Reveal(),
			fmt.Sprintf(`{"key_sha256":"%x","method":"GET","path":"/api/v1/tickets"}`, key.Hash())))
	}

	for range b.N {
		load(b, bare, bareRequests, benchWarmup)
		load(b, check, checkRequests, benchWarmup)
		var all [3][]benchRound
		var ratio, again []float64
		fmt.Printf("\n%-6s  %31s    %31s    %31s\n", "", "bare handler", "full check", "again")
		columns := fmt.Sprintf("%11s %9s %9s", "CPU µs/req", "p50 µs", "p99 µs")
		fmt.Printf("%-6s  %s    %s    %s    %s\n", "round", columns, columns, columns, "CPU ratios")
		for i := range benchRounds {
			rounds := [3]benchRound{
				load(b, bare, bareRequests, benchRequests), load(b, check, checkRequests, benchRequests),
				load(b, check, checkRequests[:1], benchRequests),
			}
			for j, r := range rounds {
				all[j] = append(all[j], r)
			}
			ratio, again = append(ratio, rounds[1].cpu/rounds[0].cpu), append(again, rounds[2].cpu/rounds[0].cpu)
			printRounds(strconv.Itoa(i+1), rounds, ratio[i], again[i])
		}
		x, y, z := medianRound(all[0]), medianRound(all[1]), medianRound(all[2])
		printRounds("median", [3]benchRound{x, y, z}, median(ratio), median(again))
		b.ReportMetric(x.cpu, "bare-cpu-µs/req")
		b.ReportMetric(y.cpu, "check-cpu-µs/req")
		b.ReportMetric(z.cpu, "again-cpu-µs/req")
		b.ReportMetric(median(ratio), "cpu-ratio")
		b.ReportMetric(median(again), "again-cpu-ratio")
	}
}

type benchRound struct{ cpu, p50, p99 float64 } // microseconds

func printRounds(name string, rounds [3]benchRound, ratio, again float64) {
	fmt.Printf("%-6s  ", name)
	for _, r := range rounds {
		fmt.Printf("%11.1f %9.0f %9.0f    ", r.cpu, r.p50, r.p99)
	}
	fmt.Printf("%.2f  %.2f\n", ratio, again)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func medianRound(rounds []benchRound) benchRound {
	of := func(figure func(benchRound) float64) float64 {
		var all []float64
		for _, r := range rounds {
			all = append(all, figure(r))
		}
		return median(all)
	}
	return benchRound{
		of(func(r benchRound) float64 { return r.cpu }),
		of(func(r benchRound) float64 { return r.p50 }),
		of(func(r benchRound) float64 { return r.p99 }),
	}
}

// benchPolicies returns a copy of the shipped policies in which plan standard has the
// highest limit: an ordinary check is one of a key with its plan's limit.
func benchPolicies(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	if err := os.CopyFS(dir, policies.FS); err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(dir, "keystile", "catalog", "data.yaml")
	raw, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	shipped := []byte("standard: {rate: 100, period_seconds: 60, burst: 100, max_keys: 1000}")
	if !bytes.Contains(raw, shipped) {
		b.Fatal("the catalogue has no plan standard as shipped")
	}
	raised := fmt.Appendf(nil, "standard: {rate: %d, period_seconds: 60, burst: %d}", benchBurst, benchBurst)
	if err := os.WriteFile(path, bytes.Replace(raw, shipped, raised, 1), 0o600); err != nil {
		b.Fatal(err)
	}
	return dir
}

// benchData stores keys of plan standard, and a caller.
func benchData(b *testing.B, env map[string]string) (keys []authz.Secret, token authz.Secret) {
	b.Helper()
	cfg, err := configFromEnvironment(env)
	if err != nil {
		b.Fatal(err)
	}
	s, err := store.Open(b.Context(), store.Options{URL: cfg.DatabaseURL, Peppers: cfg.Peppers})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now := time.Now()
	token = authz.CallerTokens().Generate()
	organization := &authz.Organization{ID: authz.NewOrganizationID(now), Name: "Bench", Plan: "standard"}
	_, err = s.Change(b.Context(), func(ctx context.Context, c *store.Change) error {
		if err := c.AddOrganization(ctx, organization); err != nil {
			return err
		}
		for range benchKeys {
			key := cfg.KeyFormat.Generate(authz.EnvironmentLive)
			keys = append(keys, key)
			k := &authz.Key{
				ID: authz.NewKeyID(now), Name: "bench", Environment: authz.EnvironmentLive,
				Scopes: []authz.Scope{"tickets:read"}, Organization: organization,
			}
			ks := &authz.KeySecret{ID: authz.NewSecretID(now), Hint: cfg.KeyFormat.Hint(key)}
			if err := errors.Join(c.AddKey(ctx, k, "bench"), c.AddKeySecret(ctx, k.ID, ks, key)); err != nil {
				return err
			}
		}
		caller := &authz.Caller{
			ID: authz.NewCallerID(now), Name: "bench", Permissions: []authz.Permission{authz.PermissionCheck},
			Environments: []authz.Environment{authz.EnvironmentLive},
		}
		return c.AddCaller(ctx, caller, token)
	})
	if err != nil {
		b.Fatal(err)
	}
	return keys, token
}

// benchServer is one side of the comparison, in a process of its own.
type benchServer struct {
	address string
	stdin   io.Writer
	stdout  *bufio.Reader
}

func startBenchServer(b *testing.B, side string, env map[string]string) *benchServer {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), asBenchServer+"="+side)
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close() // it ends with its input
		_ = cmd.Wait()
	})
	s := &benchServer{stdin: stdin, stdout: bufio.NewReader(stdout)}
	line, err := s.stdout.ReadString('\n')
	if err != nil {
		b.Fatalf("the %s side did not start: %v", side, err)
	}
	s.address = strings.TrimSpace(line)
	return s
}

// cpu asks the process how much CPU time it has used, user and system.
func (s *benchServer) cpu(b *testing.B) time.Duration {
	b.Helper()
	if _, err := io.WriteString(s.stdin, "cpu\n"); err != nil {
		b.Fatal(err)
	}
	line, err := s.stdout.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// benchServe is what the child process does.
func benchServe(side string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var address string
	switch side {
	case "bare":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		handler, err := bareHandler(os.Getenv("KEYSTILE_REDIS_URL"))
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(l, handler) }()
		address = l.Addr().String()
	case "check":
		env := map[string]string{}
		for _, line := range os.Environ() {
			if name, value, _ := strings.Cut(line, "="); strings.HasPrefix(name, "KEYSTILE_") && name != asBenchServer {
				env[name] = value
			}
		}
		cfg, err := configFromEnvironment(env)
		if err != nil {
			return err
		}
		s, err := startService(ctx, cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer func() { _ = s.close() }()
		address = strings.TrimPrefix(s.url, "http://")
	}
	fmt.Println(address)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var usage syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
			return err
		}
		fmt.Println(usage.Utime.Nano() + usage.Stime.Nano())
	}
	return lines.Err()
}

// bareHandler is the least that an app would write itself.
func bareHandler(redisURL string) (http.Handler, error) {
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		return nil, err
	}
	limiter := redis_rate.NewLimiter(redis.NewClient(options))
	limit := redis_rate.Limit{Rate: benchBurst, Period: time.Minute, Burst: benchBurst}
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.POST("/check", func(c *gin.Context) {
		var q struct {
			Key    string `json:"key"`
			Method string `json:"method"`
			Path   string `json:"path"`
		}
		decoder := json.NewDecoder(http.MaxBytesReader(c.Writer, c.Request.Body, 64<<10))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&q); err != nil || decoder.More() {
			c.JSON(http.StatusBadRequest, gin.H{"error": "malformed"})
			return
		}
		result, err := limiter.Allow(c.Request.Context(), q.Key, limit)
		if err != nil {
			c.JSON(http.StatusServiceUnavailable, gin.H{"error": "limiter"})
			return
		}
		c.Header("X-RateLimit-Remaining", strconv.Itoa(result.Remaining))
		c.JSON(http.StatusOK, gin.H{"allow": result.Allowed > 0, "remaining": result.Remaining})
	})
	return engine, nil
}

func benchRequest(address, path, token, body string) []byte {
	authorization := ""
	if token != "" {
		authorization = "Authorization: Bearer " + token + "\r\n"
	}
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, address, authorization, len(body), body)
}

// load sends so many requests over connections of its own and returns what they cost.
func load(b *testing.B, s *benchServer, requests [][]byte, n int) benchRound {
	b.Helper()
	latencies := make([][]time.Duration, benchConnections)
	failures := make([]error, benchConnections)
	before := s.cpu(b)
	var group sync.WaitGroup
	for i := range benchConnections {
		group.Go(func() {
			latencies[i], failures[i] = loadConnection(s.address, requests, i*len(requests)/benchConnections, n/benchConnections)
		})
	}
	group.Wait()
	used := s.cpu(b) - before
	if err := errors.Join(failures...); err != nil {
		b.Fatal(err)
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return benchRound{us(used) / float64(len(all)), us(all[len(all)/2]), us(all[len(all)*99/100])}
}

func loadConnection(address string, requests [][]byte, from, n int) ([]time.Duration, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	reader := bufio.NewReader(conn)
	latencies := make([]time.Duration, 0, n)
	for i := range n {
		start := time.Now()
		if _, err := conn.Write(requests[(from+i)%len(requests)]); err != nil {
			return nil, err
		}
		if err := readAllowed(reader); err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(start))
	}
	return latencies, nil
}

// readAllowed reads one answer and makes sure that it allows.
func readAllowed(r *bufio.Reader) error {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("answer %q", line)
		}
		if len(line) <= 2 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(": ")); bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	body, err := r.Peek(length)
	if err != nil {
		return err
	}
	if !bytes.Contains(body, []byte(`"allow":true`)) {
		return fmt.Errorf("not allowed: %s", body)
	}
	_, err = r.Discard(length)
	return err
}
