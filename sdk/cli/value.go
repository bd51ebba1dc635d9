package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/supportstation/keystile/sdk/admin"
)

const wholeDay = 24 * time.Hour

// span is a duration flag that takes days, such as 90d, 24h or 0.
type span struct {
	duration time.Duration
	set      bool
}

// String returns the span as it is given.
func (v *span) String() string {
	switch {
	case !v.set:
		return ""
	case v.duration >= wholeDay && v.duration%wholeDay == 0:
		return strconv.FormatInt(int64(v.duration/wholeDay), 10) + "d"
	}
	return v.duration.String()
}

// Set takes whole days or a duration of Go, not negative.
func (v *span) Set(s string) error {
	wrong := errors.New("must look like 90d, 24h, 30m or 0")
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 100_000 {
			return wrong
		}
		v.duration, v.set = time.Duration(n)*wholeDay, true
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return wrong
	}
	v.duration, v.set = d, true
	return nil
}

// Type names the form in help texts.
func (*span) Type() string { return "duration" }

// days is the span as the service takes lifetimes; nil when it is not given.
func (v *span) days() (*int, error) {
	if !v.set {
		return nil, nil
	}
	if v.duration < wholeDay || v.duration%wholeDay != 0 {
		return nil, usage(errors.New("--expires-in must be whole days, such as 90d"))
	}
	n := int(v.duration / wholeDay)
	return &n, nil
}

// seconds is the span as the service takes a grace.
func (v *span) seconds(flag string) (int, error) {
	if v.duration%time.Second != 0 {
		return 0, usage(fmt.Errorf("%s must be whole seconds, such as 24h or 90s", flag))
	}
	return int(v.duration / time.Second), nil
}

// instant is a flag that takes a time.
type instant struct {
	at  time.Time
	set bool
}

// String returns the time.
func (v *instant) String() string {
	if !v.set {
		return ""
	}
	return v.at.Format(time.RFC3339)
}

// Set takes RFC 3339.
func (v *instant) Set(s string) error {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return errors.New("must be a time of RFC 3339, such as 2027-01-31T00:00:00Z")
	}
	v.at, v.set = at.UTC(), true
	return nil
}

// Type names the form in help texts.
func (*instant) Type() string { return "time" }

// rate is a flag that takes units per period.
type rate struct {
	units, seconds int
	set            bool
}

// String returns the rate as it is given.
func (v *rate) String() string {
	if !v.set {
		return ""
	}
	return fmt.Sprintf("%d/%ds", v.units, v.seconds)
}

// Set takes a number, a slash and a period, such as 50/60s or 50/1m.
func (v *rate) Set(s string) error {
	wrong := errors.New("must be units per period, such as 50/60s")
	units, period, ok := strings.Cut(s, "/")
	n, err := strconv.Atoi(units)
	if !ok || err != nil || n < 1 {
		return wrong
	}
	var every span
	if every.Set(period) != nil || every.duration < time.Second || every.duration%time.Second != 0 {
		return wrong
	}
	v.units, v.seconds, v.set = n, int(every.duration/time.Second), true
	return nil
}

// Type names the form in help texts.
func (*rate) Type() string { return "units/period" }

// limit joins --rate and --burst; nil when there is none. A burst that is not
// given is the rate's units, as in the plans that are shipped.
func (s *session) limit(v *rate, burst int) (*admin.Rate, error) {
	if !v.set {
		if s.changed("burst") {
			return nil, usage(errors.New("--burst belongs to --rate; give both, such as --rate 50/60s --burst 50"))
		}
		return nil, nil
	}
	if !s.changed("burst") {
		burst = v.units
	}
	return &admin.Rate{Rate: v.units, PeriodSeconds: v.seconds, Burst: burst}, nil
}

func limitText(r *admin.Rate) string {
	if r == nil {
		return "its plan's"
	}
	return fmt.Sprintf("%d in %d s, burst %d", r.Rate, r.PeriodSeconds, r.Burst)
}

// metadata joins --metadata and --metadata-json; nil when there is none. Values
// are not repeated in errors: they may be private.
func (s *session) metadata(pairs []string, document string) (json.RawMessage, error) {
	if err := s.exclusive("metadata", "metadata-json"); err != nil {
		return nil, err
	}
	switch {
	case s.changed("metadata"):
		object := make(map[string]string, len(pairs))
		for _, pair := range pairs {
			name, value, ok := strings.Cut(pair, "=")
			if !ok || name == "" {
				return nil, usage(errors.New("--metadata must look like team=billing; repeat it for more"))
			}
			object[name] = value
		}
		return json.Marshal(object)
	case !s.changed("metadata-json"):
		return nil, nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(document), &object); err != nil || object == nil {
		return nil, usage(errors.New(`--metadata-json must be one JSON object, such as {"team":"billing"}`))
	}
	return json.RawMessage(document), nil
}

// metadataText is metadata on one line; "" for none.
func metadataText(raw json.RawMessage) string {
	if text := strings.TrimSpace(string(raw)); text != "{}" && text != "null" {
		return text
	}
	return ""
}

// orEmpty is the string, or "" for none.
func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
