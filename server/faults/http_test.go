package faults

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// headerWithin is how long a client may take for its headers.
	headerWithin = 5 * time.Second
	// bodyCost is how much memory a body that is too large may take, in bytes.
	bodyCost = 1 << 20
	// hugeBody is its size.
	hugeBody = 10 << 20
)

// slowClient is a way to be slow with a header.
type slowClient struct {
	name string
	// asks tells that the connection has asked a check before; atOnce is what of the
	// header is sent at once, the rest byte by byte, each after a gap.
	asks   bool
	atOnce string
	gap    time.Duration
}

// slowHeader is never sent to its end.
const slowHeader = "POST /v1/check HTTP/1.1\r\nHost: keystile\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func slowClients() []slowClient {
	lines := slowHeader[:len(slowHeader)-60]
	return []slowClient{
		{"after the first lines", false, lines, 300 * time.Millisecond},
		{"from the first byte", false, "P", 700 * time.Millisecond},
		{"after one byte", false, "P", time.Minute},
		{"after a check, after the first lines", true, lines, 700 * time.Millisecond},
		{"after a check, from the first byte", true, "P", 900 * time.Millisecond},
	}
}

// slowHeaders has many clients begin a request that they do not finish.
func slowHeaders(t *trial) {
	size := either(t, 500, 50)
	s := newSite(t)
	keys := s.addKeys(50, plenty())
	r := s.start(1)[0]
	s.warm(s.replicas, keys)
	l := s.startLoad(plan{to: s.replicas, keys: keys, rate: either(t, 500, 50)})
	took := map[string][]time.Duration{}
	var all turns
	for range either(t, 3, 1) {
		polite := s.polite(r, keys[0], size)
		one := s.takeTurns(1, either(t, 3*time.Second, time.Second), 0, func() {
			for name, times := range s.slow(r, polite, size) {
				took[name] = append(took[name], times...)
			}
		})
		all.calm, all.disturbed = append(all.calm, one.calm...), append(all.disturbed, one.disturbed...)
	}
	served := l.stop()
	closed := 0
	for _, kind := range slowClients() {
		times := took[kind.name]
		still := len(slices.DeleteFunc(slices.Clone(times), func(d time.Duration) bool { return d < slowPatience }))
		closed += len(times) - still
		t.timed(percentile(times, 1) <= headerWithin, "%s: %d of %d closed, the last after %s (≤ 5 s)", kind.name, len(times)-still, len(times), ms(percentile(times, 1)))
	}
	t.exact(closed >= size/5*2, "closed: %d of %d", closed, len(all.disturbed)*size)
	s.judgeRatio("checks", served, all, unaffected)
	s.judgeServed("checks", served)
}

// slowPatience is when a connection counts as one that is never closed.
const slowPatience = 3 * headerWithin

// polite are the connections of those who ask a check before they are slow, by their
// place among all.
func (s *site) polite(r *replica, k *key, size int) map[int]*connection {
	s.Helper()
	connections := map[int]*connection{}
	kinds := slowClients()
	for i := range size {
		if !kinds[i%len(kinds)].asks {
			continue
		}
		c, err := dial(r)
		if err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { _ = c.Close() })
		a := &answer{replica: r, key: k, due: time.Now()}
		if c.ask(k.request, a); a.err != nil {
			s.Fatal(a.err)
		}
		connections[i] = c
	}
	return connections
}

// slow has so many clients be slow at the same time, and tells how long each was borne.
func (s *site) slow(r *replica, polite map[int]*connection, size int) map[string][]time.Duration {
	s.Helper()
	var mu sync.Mutex
	var clients sync.WaitGroup
	took := map[string][]time.Duration{}
	kinds := slowClients()
	for i := range size {
		kind, c := kinds[i%len(kinds)], polite[i]
		clients.Go(func() {
			pause(time.Second * time.Duration(i) / time.Duration(size)) // row 18 is about the arrival
			if c == nil {
				var err error
				if c, err = dial(r); err != nil {
					s.Errorf("connect: %v", err)
					return
				}
			}
			defer func() { _ = c.Close() }()
			d := kind.trickle(c)
			mu.Lock()
			defer mu.Unlock()
			took[kind.name] = append(took[kind.name], d)
		})
	}
	clients.Wait()
	return took
}

// trickle sends until the connection is closed, and tells how long it was borne.
func (kind *slowClient) trickle(c *connection) time.Duration {
	began := time.Now()
	next, rest := kind.atOnce, slowHeader[len(kind.atOnce):]
	for time.Since(began) < slowPatience {
		_ = c.SetDeadline(time.Now().Add(min(kind.gap, slowPatience)))
		if _, err := io.WriteString(c, next); err != nil {
			break
		}
		// What is read is an answer that says so, if any; then the connection is closed.
		if _, err := io.Copy(io.Discard, c.reader); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		next, rest = rest[:1], rest[1:]
	}
	return time.Since(began)
}

// hugeBodies sends bodies of 10 MB, announced and not.
func hugeBodies(t *trial) {
	s := newSite(t)
	keys := s.addKeys(1, plenty())
	r := s.start(1)[0]
	s.warm(s.replicas, keys)
	for _, kind := range []struct {
		name, path, token string
		chunked           bool
	}{
		{"a check, announced", "/v1/check", s.caller.Reveal(), false},
		{"a check, in chunks", "/v1/check", s.caller.Reveal(), true},
		{"management, announced", "/v1/organizations", s.admin.Reveal(), false},
		{"management, in chunks", "/v1/organizations", s.admin.Reveal(), true},
	} {
		var costs []float64
		for range either(t, 40, 10) {
			idle := s.allocated(r, func() { pause(glance) })
			cost := s.allocated(r, func() {
				if code, said := s.sendHuge(r, kind.path, kind.token, kind.chunked); code != http.StatusRequestEntityTooLarge || said != "body_too_large" {
					t.exact(false, "%s: HTTP %d %s", kind.name, code, said)
				}
			})
			costs = append(costs, cost-idle)
		}
		slices.Sort(costs)
		mean := sum(costs) / float64(len(costs))
		t.exact(mean <= bodyCost, "%s: %d times 413, each with %.2f MB allocated", kind.name, len(costs), mean/1e6)
		t.timed(costs[len(costs)-1] <= bodyCost, "%s: at most %.2f MB (≤ 1 MB)", kind.name, costs[len(costs)-1]/1e6)
	}
	s.eventually("checks go on", func() bool { return s.ask(r, keys[0]).allow })
}

func sum(values []float64) (all float64) {
	for _, v := range values {
		all += v
	}
	return all
}

// allocated is how much a replica allocates while something is done, being asked included.
func (s *site) allocated(r *replica, do func()) float64 {
	s.Helper()
	before := r.metric(s.trial, "go_memstats_alloc_bytes_total")
	do()
	return r.metric(s.trial, "go_memstats_alloc_bytes_total") - before
}

// sendHuge sends as much of a body as is taken, and reads the answer meanwhile.
func (s *site) sendHuge(r *replica, path, token string, chunked bool) (status int, code string) {
	s.Helper()
	c, err := dial(r)
	if err != nil {
		s.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		s.Fatal(err)
	}
	length := fmt.Sprintf("Content-Length: %d", hugeBody)
	if chunked {
		length = "Transfer-Encoding: chunked"
	}
	header := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: keystile\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n\r\n", path, token, length)
	var sending sync.WaitGroup
	sending.Go(func() { writeHuge(c, header, chunked) })
	defer sending.Wait()
	defer func() { _ = c.Close() }() // first, so that sending ends
	a := &answer{replica: r, due: time.Now()}
	defer func() { a.done = time.Now(); s.keepAnswer(a) }()
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		s.exact(false, "a body that is too large is not answered: %v", err)
		return 0, ""
	}
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		s.exact(false, "the answer to a body that is too large ends early: %v", err)
	}
	return response.StatusCode, problemCode(raw)
}

// writeHuge writes {"key":"aaaa…; whoever reads it may stop to.
func writeHuge(to net.Conn, header string, chunked bool) {
	w := bufio.NewWriterSize(to, 64<<10)
	_, _ = w.WriteString(header)
	piece := bytes.Repeat([]byte("a"), 32<<10)
	copy(piece, `{"key":"`)
	for sent := 0; sent < hugeBody; sent += len(piece) {
		if chunked {
			_, _ = fmt.Fprintf(w, "%x\r\n%s\r\n", len(piece), piece)
		} else if _, err := w.Write(piece); err != nil {
			return
		}
		piece[0] = 'a'
	}
	if chunked {
		_, _ = w.WriteString("0\r\n\r\n")
	}
	_ = w.Flush()
}
