package localserver

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestRedis_AsksForThePasswordAndKeepsNothing(t *testing.T) {
	dir := tempDir(t)
	r := startTestRedis(t, RedisOptions{Dir: dir})
	if _, err := r.Do(t.Context(), "SET", "k", "v"); err != nil {
		t.Fatal(err)
	}
	stranger := &Redis{port: r.port, password: "wrong"}
	if _, err := stranger.Do(t.Context(), "PING"); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Errorf("another password: %v", err)
	}
	conn, err := net.Dial("unix", filepath.Join(r.sockets, redisSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := exchange(conn, bufio.NewReader(conn), "GET", "k"); err == nil || !strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("without a password over the socket: %v", err)
	}
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.PID()), file))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.Contains(string(text), password()) {
			t.Errorf("the password is in the server's %s", file)
		}
	}
	stop(t, r)
	await(t, "the end of a stopped Redis", r.Done())
	r = startTestRedis(t, RedisOptions{Dir: dir, Port: r.Port()})
	if got, err := r.Do(t.Context(), "EXISTS", "k"); err != nil || got != "0" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

func TestRedisCluster_ServesAllSlotsAlsoAfterAKill(t *testing.T) {
	dir := tempDir(t)
	for range 2 {
		c, err := StartRedisCluster(t.Context(), RedisOptions{Dir: dir, Password: password()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, c) })
		served := 0
		for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
			for _, node := range c.Nodes() {
				if _, err := node.Do(t.Context(), "SET", key, "v"); err == nil {
					served++
				} else if !strings.Contains(err.Error(), "MOVED") {
					t.Error(err)
				}
			}
		}
		if served != 6 {
			t.Errorf("%d of 6 keys have exactly one master", served)
		}
		if got := strings.Count(c.URL(), "addr="); got != 2 {
			t.Errorf("%d further addresses in the URL", got)
		}
		// The next start finds what a killed one leaves.
		for _, node := range c.Nodes() {
			if err := syscall.Kill(node.PID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			await(t, "the end of a killed node", node.Done())
			node.home.close()
		}
	}
}

func TestExchange_RefusesWhatIsNoPlainReply(t *testing.T) {
	for _, reply := range []string{"", "\r\n", "*1\r\n", "$-1\r\n", "$99999999\r\n", "$x\r\n", "$5\r\nab", "-ERR no\r\n"} {
		if got, err := exchange(io.Discard, bufio.NewReader(strings.NewReader(reply)), "PING"); err == nil {
			t.Errorf("%q gave %q", reply, got)
		}
	}
}
