package faults

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
)

// clockSource is preloaded into Redis: its wall clock is off by the seconds that stand in
// a file, which is mapped because a server asks for the time again and again.
const clockSource = `#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void map(void) {
	int file = open(OFFSET_FILE, O_RDONLY);
	void *at = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
	if (file >= 0 && at != MAP_FAILED) offset = at;
	close(file);
}

int clock_gettime(clockid_t clock, struct timespec *t) {
	int r = syscall(SYS_clock_gettime, clock, t);
	if (r == 0 && clock == CLOCK_REALTIME && offset) t->tv_sec += *offset;
	return r;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
	struct timespec s;
	int r = clock_gettime(CLOCK_REALTIME, &s);
	t->tv_sec = s.tv_sec;
	t->tv_usec = s.tv_nsec / 1000;
	return r;
}

time_t time(time_t *t) {
	struct timespec s;
	clock_gettime(CLOCK_REALTIME, &s);
	if (t) *t = s.tv_sec;
	return s.tv_sec;
}
`

// longWait is much longer than the window, and much shorter than the step.
const longWait = 15 * time.Second

// clockStep is how far Redis' clock goes at once.
const clockStep = time.Hour

// steppedRedis puts a Redis in the place of the row's whose clock step sets: it is ahead
// of the machine's by so much from then on.
func (s *site) steppedRedis() (step func(ahead time.Duration)) {
	s.Helper()
	server, err := exec.LookPath("redis-server")
	if err != nil {
		s.Fatal(err)
	}
	offset := filepath.Join(s.dir, "offset")
	source, library, wrapper := filepath.Join(s.dir, "clock.c"), filepath.Join(s.dir, "clock.so"), filepath.Join(s.dir, "redis-server")
	write := func(path string, text []byte, mode os.FileMode) {
		if err := os.WriteFile(path, text, mode); err != nil {
			s.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask: Redis runs as another user
			s.Fatal(err)
		}
	}
	write(offset, make([]byte, 8), 0o644)
	write(source, []byte(clockSource), 0o644)
	compile := exec.CommandContext(s.Context(), "gcc", "-shared", "-fPIC", "-O2", fmt.Sprintf("-DOFFSET_FILE=%q", offset), "-o", library, source)
	if said, err := compile.CombinedOutput(); err != nil {
		s.Fatalf("gcc makes Redis' clock: %v\n%s", err, said)
	}
	if err := os.Chmod(library, 0o755); err != nil {
		s.Fatal(err)
	}
	write(wrapper, fmt.Appendf(nil, "#!/bin/sh\nLD_PRELOAD=%s exec %s \"$@\"\n", library, server), 0o755)
	if err := s.redis.Stop(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.redis, err = localserver.StartRedis(s.Context(), localserver.RedisOptions{Dir: s.dir + "/stepped", Password: password, Program: wrapper})
	if err != nil {
		s.Fatal(err)
	}
	s.env["KEYSTILE_REDIS_URL"] = s.redis.URL()
	file, err := os.OpenFile(offset, os.O_WRONLY, 0)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = file.Close() })
	return func(ahead time.Duration) {
		s.Helper()
		// In place: a mapped file that is cut off first would kill who reads it.
		if _, err := file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(ahead.Seconds()))), 0); err != nil {
			s.Fatal(err)
		}
		if off := s.redisTime().Sub(time.Now().Add(ahead)).Abs(); off > time.Minute {
			s.Fatalf("Redis' clock is %v off from where it was put", off)
		}
	}
}

func (s *site) redisTime() time.Time {
	s.Helper()
	said, err := s.redis.Do(s.Context(), "EVAL", "return redis.call('TIME')[1]", "0")
	if err != nil {
		s.Fatal(err)
	}
	seconds, err := strconv.ParseInt(said, 10, 64)
	if err != nil {
		s.Fatal(err)
	}
	return time.Unix(seconds, 0)
}

// redisClock has Redis' clock go an hour ahead, back, an hour behind, and back.
func redisClock(t *trial) {
	s := newSite(t)
	step := s.steppedRedis()
	// A window of three seconds: whoever is denied longer is seen to be.
	short := authz.Rate{Rate: 30, Period: 3 * time.Second, Burst: 30}
	greedy, modest := s.addKeys(4, &short), s.addKeys(4, &short)
	replicas := s.start(3)
	s.warm(replicas, slices.Concat(greedy, modest))
	more := s.startLoad(plan{to: replicas, keys: greedy, rate: either(t, 400, 100)}) // than there is
	less := s.startLoad(plan{to: replicas, keys: modest, rate: 20})                  // a half of what comes back
	pause(2 * time.Second)
	began := time.Now()
	steps := either(t, []time.Duration{clockStep, 0, -clockStep, 0}, []time.Duration{clockStep, 0})
	for _, ahead := range steps {
		step(ahead)
		s.note("Redis' clock is %v ahead", ahead)
		stepped := time.Now()
		denied := 0
		for _, k := range modest { // the others find out by their load
			for _, r := range replicas {
				if !within(time.Until(stepped.Add(longWait)), func() bool { return s.ask(r, k).allow }) {
					denied++
				}
			}
		}
		t.exact(denied == 0, "Redis' clock %v ahead: never allowed again %d of %d keys and replicas", ahead, denied, len(replicas)*len(modest))
		pause(time.Until(stepped.Add(either(t, 5*time.Second, time.Second))))
	}
	for _, l := range []*load{more, less} {
		all := l.stop()
		after := all.between(began, time.Now())
		t.timed(after.longestDenied() <= short.Period, "a key was denied for at most %.2f s (window %v), %d steps: %v",
			after.longestDenied().Seconds(), short.Period, len(steps), after)
		exactly := all.where(func(a *answer) bool { return a.err == nil && a.mode != "exact" })
		t.timed(len(exactly) == 0, "in a mode other than exact: %d", len(exactly))
	}
}

// longestDenied is the longest time in which a key was asked for and not admitted once.
func (all answers) longestDenied() (longest time.Duration) {
	since := map[*key]time.Time{}
	for _, a := range all {
		at, denied := since[a.key]
		if a.allow {
			delete(since, a.key)
		} else if !denied {
			at, denied = a.sent, true
			since[a.key] = at
		}
		if denied {
			longest = max(longest, a.done.Sub(at))
		}
	}
	return longest
}
