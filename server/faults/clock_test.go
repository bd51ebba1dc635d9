package faults

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/sdk/admin"
)

// replicaClock has one replica of three an hour behind, and one an hour ahead.
func replicaClock(t *trial) {
	s := newSite(t)
	s.program = altered.path
	keys, limited := s.addKeys(10, plenty()), s.addKeys(1, nil)
	for _, off := range []string{"-3600", "0", "3600"} {
		s.start(1, map[string]string{"FAULTS_CLOCK": off})
	}
	replicas := s.replicas
	s.warm(replicas, keys)
	s.judgeClocks()

	began := time.Now()
	admitted := s.run(plan{to: replicas, keys: limited, rate: 300, rounds: 250})
	most := 100 + int(time.Since(began).Seconds()*100/60) + 1
	exactly := admitted.where(func(a *answer) bool { return a.mode == "exact" })
	t.exact(exactly.allowed() <= most, "3 replicas together admit %d of %d checks at 100 a minute (≤ %d)", exactly.allowed(), len(exactly), most)
	t.timed(exactly.allowed() >= 100 && len(exactly) == len(admitted), "and the whole burst: %v", admitted)
	s.judgeResets(replicas, limited[0])
	for range either(t, 3, 1) {
		s.judgeExpiry(replicas, either(t, 2*time.Second, 6*time.Second))
	}

	all := s.revocations(either(t, 30, 3), replicas, nil)
	times := delays(all)
	t.timed(percentile(times, .99) <= 250*time.Millisecond && percentile(times, 1) <= time.Second,
		"revoked → denied on 3 replicas: p50 %s, p99 %s, max %s of %d (≤ 250 ms, ≤ 1 s)", ms(percentile(times, .5)), ms(percentile(times, .99)),
		ms(percentile(times, 1)), len(times))
	s.judgeOrder(all)
}

// judgeClocks states how far each replica's own clock is from Postgres', by the time in
// the id that it has made for itself.
func (s *site) judgeClocks() {
	s.Helper()
	var off []int
	s.db(func(db *sqlx.DB) {
		err := db.SelectContext(s.Context(), &off, `SELECT round((('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0
			- extract(epoch FROM started_at)) / 60) FROM replicas ORDER BY 1`)
		if err != nil {
			s.Fatal(err)
		}
	})
	s.exact(slices.Equal(off, []int{-60, 0, 60}), "replicas' own clocks are off by %v minutes", off)
}

// judgeResets states when each replica says that a bucket is full again.
func (s *site) judgeResets(replicas []*replica, k *key) {
	s.Helper()
	sane, told := true, []int{}
	for _, r := range replicas {
		_, body, _ := bytes.Cut(k.request, []byte("\r\n\r\n"))
		request, err := http.NewRequestWithContext(s.Context(), http.MethodPost, r.url+"/v1/check", bytes.NewReader(body))
		if err != nil {
			s.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+s.caller.Reveal())
		request.Header.Set("Content-Type", "application/json")
		response, err := opsClient().Do(request)
		if err != nil {
			s.Fatal(err)
		}
		var said struct {
			Headers map[string]string `json:"headers"`
		}
		err = json.NewDecoder(response.Body).Decode(&said)
		_ = response.Body.Close()
		reset, notNumber := strconv.ParseInt(said.Headers["X-RateLimit-Reset"], 10, 64)
		left := int(reset - time.Now().Unix())
		told = append(told, left)
		sane = sane && err == nil && notNumber == nil && left >= -2 && left <= 62
	}
	s.exact(sane, "X-RateLimit-Reset is %v s from now on the 3 replicas (0 to 60)", told)
}

// judgeExpiry makes a key that expires, and watches it on every replica.
func (s *site) judgeExpiry(replicas []*replica, life time.Duration) {
	s.Helper()
	expires := time.Now().Add(life).Truncate(time.Millisecond)
	k := s.createKey(replicas[0], s.organization.String(), func(k *admin.KeyCreate) { k.ExpiresAt = &expires })
	late := expires.Add(time.Second)
	k.denied.Store(&late)
	l := s.startLoad(plan{to: replicas, keys: []*key{k}, rate: 300, connections: len(replicas)})
	pause(time.Until(late) + 500*time.Millisecond)
	all := l.stop()
	var ends []time.Duration
	early := 0
	for _, r := range replicas {
		// Before it has the key, a replica on a busy machine may not know it in time.
		expired := all.to(r).where(func(a *answer) bool { return a.code == "key_expired" })
		early += len(expired.where(func(a *answer) bool { return a.done.Before(expires.Add(-time.Second)) }))
		if len(expired) > 0 {
			ends = append(ends, expired[0].done.Sub(expires))
		}
	}
	s.exact(len(ends) == len(replicas) && early == 0, "expired on %d of 3 replicas, too early: %d; %v", len(ends), early, all)
	slices.Sort(ends)
	s.timed(len(ends) > 0 && ends[0] > -time.Second && ends[len(ends)-1] < time.Second && ends[len(ends)-1]-ends[0] <= time.Second,
		"expired %v after its time", ends)
}
