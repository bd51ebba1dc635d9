package faults

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// problemCode is the code of a problem or a decision, "" when there is none.
func problemCode(raw []byte) string {
	var said struct {
		Code string `json:"code"`
	}
	if json.Unmarshal(raw, &said) != nil {
		return ""
	}
	return said.Code
}

// checkWith is a check's whole request with this body.
func (s *site) checkWith(body []byte) []byte {
	return fmt.Appendf(nil, "POST /v1/check HTTP/1.1\r\nHost: keystile\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", s.caller.Reveal(), len(body), body)
}

// flaw spoils a body that is an object and asks for a check which would be allowed.
type flaw struct {
	code  string
	spoil func(r *rand.Rand, body string) string
}

// flaws are all that is refused with 400, each with what is told.
func flaws() []flaw {
	always := func(now func(body string) string) func(*rand.Rand, string) string {
		return func(_ *rand.Rand, body string) string { return now(body) }
	}
	oneOf := func(choices ...string) func(*rand.Rand) string {
		return func(r *rand.Rand) string { return choices[r.IntN(len(choices))] }
	}
	// within puts something into the value of the path.
	within := func(choices ...string) func(*rand.Rand, string) string {
		what := oneOf(choices...)
		return func(r *rand.Rand, body string) string {
			return strings.Replace(body, `tickets"`, what(r)+`tickets"`, 1)
		}
	}
	field := func(choices ...string) func(*rand.Rand, string) string {
		what := oneOf(choices...)
		return func(r *rand.Rand, body string) string {
			if r.IntN(2) == 0 {
				return strings.Replace(body, "{", "{"+what(r)+",", 1)
			}
			return body[:len(body)-1] + "," + what(r) + "}"
		}
	}
	after := oneOf("{}", "null", "1", `"a"`, "[]", "}", ",", "x", "\n{\"key\":\"\"}", " //", "]")
	return []flaw{
		{"malformed_json", func(r *rand.Rand, body string) string { return body[:r.IntN(len(body))] }},
		{"malformed_json", always(func(body string) string { return strings.Replace(body, `"}`, `",}`, 1) })},
		{"malformed_json", always(func(body string) string { return strings.ReplaceAll(body, `"`, `'`) })},
		{"malformed_json", always(func(body string) string { return "\ufeff" + body })},
		{"malformed_json", within(`\x`, "\n", "\x01", `\ud800`, `\u12`)},
		{"malformed_json", field(`"cost":01`, `"cost":NaN`, `"browser":True`, `cost:1`, `"cost":1/*1*/`, `"cost":+1`)},
		{"malformed_json", always(func(string) string { return strings.Repeat("[", 60_000) })},
		{"malformed_json", always(func(string) string { return `{"cost":` + strings.Repeat("[", 60_000) })},
		{"invalid_utf8", within("\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82")},
		{"nul_character", within("\x00", `\u0000`)},
		{"nul_character", func(r *rand.Rand, body string) string { at := r.IntN(len(body)); return body[:at] + "\x00" + body[at:] }},
		{"nul_character", always(func(body string) string { return body + "\x00" })},
		{"duplicate_field", func(_ *rand.Rand, body string) string { return body[:len(body)-1] + "," + body[1:] }},
		{"duplicate_field", field(`"cost":1,"cost":1`, `"resource":{"id":"1","id":"1"}`, `"browser":false,"browser":false`, `"resource":{},"resource":{}`)},
		{"duplicate_field", field(`"key":""`, `"path":"/","\u0070ath":"/"`)},
		{"unknown_field", func(r *rand.Rand, body string) string {
			return strings.Replace(body, `"key_sha256"`, oneOf(`"KEY_SHA256"`, `"Key_sha256"`, `"\u212aey_sha256"`, "\"\u212aey_sha256\"", `"key_\u017fha256"`)(r), 1)
		}},
		{"unknown_field", field(`"Cost":1`, `"BROWSER":true`, `"resource":{"ID":"1"}`, `"Resource":{}`, `"clientIp":"1.2.3.4"`, `"":1`, `"Method":"GET"`, `"PATH":"/"`, `"Key":""`)},
		{"trailing_data", func(r *rand.Rand, body string) string { return body + after(r) }},
		{"trailing_data", func(_ *rand.Rand, body string) string { return body + body }},
	}
}

// spoiltBodies sends what is not a question, with a stored key that no replica has in
// memory: whoever took one of them for a question would have to look it up.
func spoiltBodies(t *trial) {
	s := newSite(t)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 21))
	s.note("seed %d", seed)
	flawed, mutated := s.addKeys(1, plenty())[0], s.addKeys(1, plenty())[0]
	s.logStatements()
	r := s.start(1)[0]
	c, err := dial(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	counts := map[string]int{}
	lookups, charged := r.metric(t, "keystile_store_lookup_statements_total"), r.metric(t, "keystile_limiter_exact_total")
	rounds := either(t, 300, 20)
	for range rounds {
		for _, f := range flaws() {
			body := f.spoil(random, bodyOf(flawed))
			status, code, _ := s.send(&c, r, []byte(body))
			counts[f.code]++
			if status != http.StatusBadRequest || code != f.code {
				t.exact(false, "%s: HTTP %d %s for %s", f.code, status, code, s.shown(body))
			}
		}
	}
	t.exact(true, "%d bodies, all 400: %v", rounds*len(flaws()), counts)
	s.judgeNoCall(r, lookups, charged)

	// Any byte may change: that may still be a question, but then one that is denied or
	// that asks for this very key.
	outcomes := map[string]int{}
	for range either(t, 6000, 500) {
		body := mutate(random, bodyOf(mutated))
		status, code, allow := s.send(&c, r, body)
		outcomes[fmt.Sprintf("%d %s", status, code)]++
		if status >= 500 {
			t.exact(false, "HTTP %d %s for %s", status, code, s.shown(string(body)))
		}
		if hash := mutated.secret.Hash(); allow && !asksFor(body, hex.EncodeToString(hash[:])) {
			t.exact(false, "WRONG ALLOW of %s", s.shown(string(body)))
		}
	}
	t.exact(len(outcomes) > 5, "mutated bodies: %v", outcomes)
	s.eventually("the key is allowed when it is asked for well", func() bool { return s.ask(r, flawed).allow })
}

// judgeNoCall states that nothing was looked up or charged: by the replica's own count,
// and by what Postgres was asked.
func (s *site) judgeNoCall(r *replica, lookups, charged float64) {
	s.Helper()
	// A replica that starts warms its connections up with the statement, and no digest.
	read := slices.DeleteFunc(s.readLookups(), func(digests []string) bool { return len(strings.Join(digests, "")) == 0 })
	s.exact(r.metric(s.trial, "keystile_store_lookup_statements_total") == lookups && len(read) == 0 &&
		r.metric(s.trial, "keystile_limiter_exact_total") == charged, "statements that look keys up: %d in Postgres' log; charged: %.0f",
		len(read), r.metric(s.trial, "keystile_limiter_exact_total")-charged)
}

// bodyOf is the body of the check that presents a key.
func bodyOf(k *key) string { return string(k.request[bytes.Index(k.request, []byte("\r\n\r\n"))+4:]) }

// shown is a body as a failure shows it: hashes are no secrets, but need not be there.
func (*site) shown(body string) string {
	return fmt.Sprintf("%.200q (%d bytes)", body, len(body))
}

// send asks on a connection, which it replaces when it was closed.
func (s *site) send(c **connection, r *replica, body []byte) (status int, code string, allow bool) {
	s.Helper()
	a := &answer{replica: r, due: time.Now()}
	if (*c).ask(s.checkWith(body), a); a.err != nil {
		s.exact(false, "no answer: %v, to %s", a.err, s.shown(string(body)))
	}
	if a.err != nil || a.connectionCloses {
		_ = (*c).Close()
		fresh, err := dial(r)
		if err != nil {
			s.Fatal(err)
		}
		*c = fresh
	}
	s.keepAnswer(a)
	return a.status, a.code, a.allow
}

// mutate changes a few bytes, takes some out, or puts something in.
func mutate(r *rand.Rand, body string) []byte {
	pieces := []string{`"`, "{", "}", "[", ",", ":", "\\", "\x00", "\xff", "null", "1e999", `\u0000`, `,"key":""`, `"cost":2,`, " ", "\u212a", "-"}
	b := []byte(body)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(b))
		switch r.IntN(5) {
		case 0:
			b[at] = byte(r.IntN(256))
		case 1:
			b[at] ^= 0x20
		case 2:
			b = append(b[:at:at], b[min(len(b), at+1+r.IntN(4)):]...)
		case 3:
			b = append(b[:at:at], append([]byte(pieces[r.IntN(len(pieces))]), b[at:]...)...)
		default:
			end := min(len(b), at+1+r.IntN(40))
			b = append(b[:end:end], b[at:]...)
		}
		if len(b) == 0 {
			return []byte("{")
		}
	}
	return b
}

// asksFor tells by other code than the product's whether a body is one object that names
// every field once, in its own spelling, and presents this hash.
func asksFor(body []byte, hash string) bool {
	if !utf8.Valid(body) || bytes.IndexByte(body, 0) >= 0 {
		return false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return false
	}
	values := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		text, ok := name.(string)
		var value json.RawMessage
		if err != nil || !ok || values[text] != nil || d.Decode(&value) != nil {
			return false
		}
		values[text] = value
	}
	if _, err := d.Token(); err != nil {
		return false
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return false
	}
	var presented string
	return json.Unmarshal(values["key_sha256"], &presented) == nil && strings.EqualFold(presented, hash) && values["key"] == nil &&
		len(values) == 3+min(1, len(values["cost"])) && values["method"] != nil && values["path"] != nil
}
