package faults

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// pipelined is how many checks a connection of a flood has asked and not read yet, when
	// nothing else is said.
	pipelined = 16
	// floodVariable makes the test's own program a flood, see TestMain.
	floodVariable = "KEYSTILE_FAULTS_FLOOD"
)

// floodOrder is what a flood reads first from its standard input, which then stays open
// until the flood shall end.
type floodOrder struct {
	Address, Caller string
	Connections     int
	// Arrive is the time within which they connect, one after the other, and in the end
	// leave. Every is how
	// often each asks, where what is late is caught up with; 0 is as fast as it is answered.
	Arrive, Every time.Duration
	// Together is how many checks each asks at a time; 0 is one with Every, pipelined without.
	Together int
	// Keys are the texts that are presented in turn; without them each is a new one that
	// nobody has stored, with the right checksum.
	Keys []string
}

// floodResult is what it writes at the end of each part.
type floodResult struct {
	Answered, Allowed, Denied, Limited, Undecided, Broken int64
	// Slowest is the longest that an answer took, Lasted the time from the first question to
	// the last answer.
	Slowest, Lasted time.Duration
}

// add counts another one's answers as well, of the same time.
func (r *floodResult) add(other floodResult) {
	r.Answered, r.Allowed, r.Denied = r.Answered+other.Answered, r.Allowed+other.Allowed, r.Denied+other.Denied
	r.Limited, r.Undecided, r.Broken = r.Limited+other.Limited, r.Undecided+other.Undecided, r.Broken+other.Broken
	r.Slowest, r.Lasted = max(r.Slowest, other.Slowest), max(r.Lasted, other.Lasted)
}

// rate is how many were answered a second.
func (r floodResult) rate() float64 { return float64(r.Answered) / r.Lasted.Seconds() }

func (r floodResult) String() string {
	return fmt.Sprintf("%d asked: %d allowed, %d denied, %d limited, %d undecided, %d other",
		r.Answered, r.Allowed, r.Denied, r.Limited, r.Undecided, r.Broken)
}

// flood is a process that asks with what time the machine has left: it stands for clients
// elsewhere, and takes no core from the service. It may begin and end several times: that
// it starts is not part of what others wait for.
type flood struct {
	site  *site
	input io.Writer
	said  *json.Decoder
}

// prepareFlood returns when its process is there; it asks from begin to end, as the order
// says, and without keys it presents unknown ones.
func (s *site) prepareFlood(r *replica, order floodOrder, keys ...*key) *flood {
	s.Helper()
	order.Address, order.Caller = r.address(), s.caller.Reveal()
	for _, k := range keys {
		order.Keys = append(order.Keys, k.secret.Reveal())
	}
	// With no more than what is left over: on Linux whatever wakes up has the core at once.
	cmd := exec.Command("nice", "-n", "19", os.Args[0])
	if idle, err := exec.LookPath("chrt"); err == nil {
		cmd = exec.Command(idle, "--idle", "0", os.Args[0])
	}
	cmd.Env = append(os.Environ(), floodVariable+"=1")
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		s.Fatalf("start a flood: %v", err)
	}
	output, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.Fatalf("start a flood: %v", err)
	}
	s.Cleanup(func() {
		if err := errors.Join(input.Close(), cmd.Wait()); err != nil {
			s.Errorf("a flood: %v", err)
		}
	})
	f := &flood{site: s, input: input, said: json.NewDecoder(output)}
	var ready floodResult
	if err := errors.Join(json.NewEncoder(input).Encode(order), f.said.Decode(&ready)); err != nil {
		s.Fatalf("start a flood: %v", err)
	}
	return f
}

// begin has it ask.
func (f *flood) begin() {
	f.site.Helper()
	if _, err := f.input.Write(turnOver); err != nil {
		f.site.Fatalf("a flood: %v", err)
	}
}

// end returns when it has asked its last, and how it was answered since begin.
func (f *flood) end() (result floodResult) {
	f.site.Helper()
	_, err := f.input.Write(turnOver)
	if err := errors.Join(err, f.said.Decode(&result)); err != nil {
		f.site.Fatalf("a flood: %v", err)
	}
	return result
}

// turnOver tells a flood to begin, or to end.
var turnOver = []byte{'\n'}

// runFlood is the flood's own process: it reads its order and says that it is there, and
// then what came of each part.
func runFlood(in io.Reader, out io.Writer) error {
	input, said := bufio.NewReader(in), json.NewEncoder(out)
	line, err := input.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("a flood's order: %w", err)
	}
	var order floodOrder
	if err := json.Unmarshal(line, &order); err != nil {
		return fmt.Errorf("a flood's order: %w", err)
	}
	format, err := authz.NewKeyFormat(authz.DefaultKeyPrefix)
	if err != nil {
		return err
	}
	result := floodResult{}
	for {
		if err := said.Encode(result); err != nil {
			return err
		}
		switch _, err := input.ReadByte(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		f := flooding{floodOrder: order, format: format, began: time.Now(), quit: make(chan struct{})}
		f.start()
		_, _ = input.ReadByte() // when it is over the last part is, too
		result = f.stop()
	}
}

// flooding is a part of a running flood: nothing is timed, and of answers only the header is read.
type flooding struct {
	floodOrder

	format  authz.KeyFormat
	began   time.Time
	quit    chan struct{}
	workers sync.WaitGroup

	asked, answered, allowed, denied, limited, undecided, broken atomic.Int64

	mu      sync.Mutex
	slowest time.Duration
}

func (f *flooding) start() {
	for i := range f.Connections {
		f.workers.Go(func() {
			turn := f.Arrive * time.Duration(i) / time.Duration(f.Connections)
			if f.wait(turn) {
				f.work(turn)
			}
		})
	}
}

func (f *flooding) stop() floodResult {
	close(f.quit)
	f.workers.Wait()
	return floodResult{
		Answered: f.answered.Load(), Allowed: f.allowed.Load(), Denied: f.denied.Load(), Limited: f.limited.Load(),
		Undecided: f.undecided.Load(), Broken: f.broken.Load(), Slowest: f.slowest, Lasted: time.Since(f.began),
	}
}

// wait tells whether to go on after some time.
func (f *flooding) wait(d time.Duration) bool {
	select {
	case <-f.quit:
		return false
	case <-time.After(d):
		return true
	}
}

// text is the next key that is presented: all have the same length.
func (f *flooding) text() string {
	n := f.asked.Add(1)
	if len(f.Keys) > 0 {
		return f.Keys[n%int64(len(f.Keys))]
	}
	return f.format.Generate(authz.EnvironmentLive).Reveal()
}

// work is one connection, which leaves some time after the end.
func (f *flooding) work(leave time.Duration) {
	c, err := net.DialTimeout("tcp", f.Address, giveUp)
	if err != nil {
		f.broken.Add(1)
		return
	}
	defer func() {
		pause(leave)
		_ = c.Close()
	}()
	reader, text := bufio.NewReader(c), f.text()
	body := fmt.Sprintf(`{"key":%q,"method":"GET","path":%q}`, text, path)
	one := fmt.Appendf(nil, "POST /v1/check HTTP/1.1\r\nHost: keystile\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", f.Caller, len(body), body)
	at, together := bytes.LastIndex(one, []byte(text)), f.Together
	switch {
	case together > 0:
	case f.Every > 0:
		together = 1
	default:
		together = pipelined
	}
	batch := bytes.Repeat(one, together)
	for due := time.Now(); f.wait(time.Until(due)); due = due.Add(f.Every) {
		for i := range together {
			copy(batch[i*len(one)+at:], f.text())
		}
		if err := f.exchange(c, reader, batch, together); err != nil {
			f.broken.Add(1)
			return
		}
	}
}

func (f *flooding) exchange(c net.Conn, reader *bufio.Reader, batch []byte, together int) error {
	sent := time.Now()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.slowest = max(f.slowest, time.Since(sent))
	}()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(batch); err != nil {
		return err
	}
	for range together {
		status, decision, err := readHeader(reader)
		if err != nil {
			return err
		}
		f.answered.Add(1)
		switch {
		case decision == "allow":
			f.allowed.Add(1)
		case status == 200 && decision == "deny":
			f.denied.Add(1)
		case status == 200 && decision == "limited":
			f.limited.Add(1)
		case status == 200 && decision == "error":
			f.undecided.Add(1)
		default:
			f.broken.Add(1)
		}
	}
	return nil
}

var errNoHTTP = errors.New("the answer is not HTTP")

// readHeader reads an answer, of which it keeps the status and X-Keystile-Decision.
func readHeader(r *bufio.Reader) (status int, decision string, err error) {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, "", err
		}
		line = bytes.TrimSpace(line)
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case first && len(line) > 12:
			status, err = strconv.Atoi(string(line[9:12]))
		case first:
			err = errNoHTTP
		case len(line) == 0:
			_, err := r.Discard(length)
			return status, decision, err
		case string(name) == "Content-Length":
			length, err = strconv.Atoi(string(value))
		case string(name) == "X-Keystile-Decision":
			decision = string(value)
		}
		if err != nil {
			return 0, "", err
		}
	}
}
