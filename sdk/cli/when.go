package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// day is a date in a column, with how far it is; "never" for none.
func day(t *time.Time, now time.Time) string {
	if t == nil {
		return date(t)
	}
	return date(t) + " (" + relative(t.Sub(now)) + ")"
}

// date is a day's date, where columns are many; "never" for none.
func date(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format(time.DateOnly)
}

// moment is a time to the second, with how far it is.
func moment(t, now time.Time) string {
	return stamp(t) + " (" + relative(t.Sub(now)) + ")"
}

// stamp is a time to the second, in UTC.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// relative tells a distance in the largest unit that is not too coarse.
func relative(d time.Duration) string {
	size := d.Abs()
	const days = 24 * time.Hour
	var count string
	switch {
	case size < time.Second:
		return "now"
	case size < time.Minute:
		count = counted(size, time.Second, "second")
	case size < time.Hour:
		count = counted(size, time.Minute, "minute")
	case size < 2*days:
		count = counted(size, time.Hour, "hour")
	case size < 730*days:
		count = counted(size, days, "day")
	default:
		count = counted(size, 365*days, "year")
	}
	if d < 0 {
		return count + " ago"
	}
	return "in " + count
}

func counted(d, unit time.Duration, name string) string {
	n := int64(d.Round(unit) / unit)
	return plural(n, name)
}

// plural counts things.
func plural(n int64, name string) string {
	if n == 1 {
		return "1 " + name
	}
	return fmt.Sprintf("%d %ss", n, name)
}

// lastUse is how long ago something was used, in a column; "never" for not yet.
func lastUse(t *time.Time, now time.Time) string {
	if t == nil {
		return "never"
	}
	return relative(t.Sub(now))
}

// window reads --since and --until; nil is for one that is not given.
func (c Config) window(since, until string) (from, to *time.Time, err error) {
	for _, bound := range []struct {
		flag, text string
		to         **time.Time
	}{{"since", since, &from}, {"until", until, &to}} {
		if bound.text == "" {
			continue
		}
		at, err := pointInTime(bound.text, c.now())
		if err != nil {
			return nil, nil, usage(fmt.Errorf("--%s: %w", bound.flag, err))
		}
		*bound.to = &at
	}
	return from, to, nil
}

// pointInTime reads how long ago, or a day or time.
func pointInTime(text string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n <= 4000 {
			return now.AddDate(0, 0, -n).UTC(), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither how long ago, such as 36h or 7d, nor a day or time in UTC such as 2026-11-24", printable(text))
}
