package faults

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

// giveUp is when a client stops to wait. It is far beyond what is promised, so that a
// late answer is measured and not lost.
const giveUp = 5 * time.Second

// key is what clients present, with the whole request that presents it.
type key struct {
	secret authz.Secret
	id     authz.KeyID
	// stored tells that the database has it: one that is not must never be allowed.
	stored bool
	// denied is from when on no check that starts may allow it; nil while it is valid.
	denied  atomic.Pointer[time.Time]
	request []byte
}

// path is what is asked for unless a row says otherwise.
const path = "/api/v1/tickets"

func (s *site) newKey(secret authz.Secret) *key {
	s.keep(secret)
	k := &key{secret: secret}
	k.request = s.question(k, path)
	return k
}

// question is a check's whole request, as an SDK sends it.
func (s *site) question(k *key, path string) []byte { return s.questionFrom(k, path, "") }

// questionFrom is one with a client's address.
func (s *site) questionFrom(k *key, path, address string) []byte {
	body := fmt.Sprintf(`{"key_sha256":"%x","method":"GET","path":%q}`, k.secret.Hash(), path)
	if address != "" {
		body = fmt.Sprintf(`%s,"client_ip":%q}`, strings.TrimSuffix(body, "}"), address)
	}
	return fmt.Appendf(nil, "POST /v1/check HTTP/1.1\r\nHost: keystile\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", s.caller.Reveal(), len(body), body)
}

// answer is what became of one check.
type answer struct {
	replica *replica
	key     *key
	// due is when it should have been asked, sent when it was, done when it was answered.
	due, sent, done time.Time
	// err is that of the connection. The rest is the answer's, when there was one.
	err              error
	status           int // HTTP's
	allow            bool
	code             string
	reasons          []string
	store, limiter   bool // degraded
	mode             string
	connectionCloses bool
}

// took is what a client waited, from when it should have been asked: a service that
// stands still does not look better for the questions that were not asked meanwhile.
func (a *answer) took() time.Duration { return a.done.Sub(a.due) }

// outcome is what counts are by: the code, or that there was none.
func (a *answer) outcome() string {
	switch {
	case a.err != nil:
		return "no answer"
	case a.status != http.StatusOK:
		return fmt.Sprintf("HTTP %d %s", a.status, a.code)
	}
	return a.code
}

// connection is a client's, kept alive. It asks one question after the other and
// repeats none.
type connection struct {
	net.Conn

	reader *bufio.Reader
}

func dial(r *replica) (*connection, error) {
	c, err := net.DialTimeout("tcp", r.address(), giveUp)
	if err != nil {
		return nil, err
	}
	return &connection{c, bufio.NewReader(c)}, nil
}

// ask sends a whole request and reads what is answered into a.
func (c *connection) ask(request []byte, a *answer) {
	a.sent = time.Now()
	a.err = c.exchange(request, a)
	a.done = time.Now()
}

func (c *connection) exchange(request []byte, a *answer) error {
	if err := c.SetDeadline(a.sent.Add(giveUp)); err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	a.status, a.connectionCloses = response.StatusCode, response.Close
	// A decision, or the problem of a question: both have a code.
	var said struct {
		Allow    bool     `json:"allow"`
		Code     string   `json:"code"`
		Degraded []string `json:"degraded"`
		Reasons  []struct {
			Code string `json:"code"`
		} `json:"reasons"`
		RateLimit struct {
			Mode string `json:"mode"`
		} `json:"rate_limit"`
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&said); err != nil {
		return fmt.Errorf("the answer is not JSON: %w", err)
	}
	a.allow, a.code, a.mode = said.Allow, said.Code, said.RateLimit.Mode
	a.store, a.limiter = slices.Contains(said.Degraded, "store"), slices.Contains(said.Degraded, "limiter")
	for _, r := range said.Reasons {
		a.reasons = append(a.reasons, r.Code)
	}
	return nil
}

// ask asks one replica once, on a connection of its own.
func (s *site) ask(r *replica, k *key) *answer { return s.askPath(r, k, path) }

func (s *site) askPath(r *replica, k *key, path string) *answer {
	a := &answer{replica: r, key: k, due: time.Now()}
	c, err := dial(r)
	if err != nil {
		a.sent, a.done, a.err = a.due, time.Now(), err
	} else {
		defer func() { _ = c.Close() }()
		c.ask(s.question(k, path), a)
	}
	s.judgeAllow(a)
	return a
}

// warm asks each replica for each key until it is allowed, so that all of them are known.
func (s *site) warm(replicas []*replica, keys []*key) {
	s.Helper()
	for _, r := range replicas {
		for _, k := range keys {
			s.eventually("a stored key is allowed", func() bool { return s.ask(r, k).allow })
		}
	}
}
