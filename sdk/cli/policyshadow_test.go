package cli_test

import (
	"strings"
	"testing"

	"github.com/supportstation/keystile/sdk/cli"
)

// shadowAsked is one that runs and was asked so often.
func shadowAsked(n int) obj {
	seconds := obj{"p50": nil, "p99": nil}
	return obj{
		"candidate": "sha256:x", "state": "running", "started_at": "2026-10-20T11:57:00Z", "ends_at": "2026-10-20T12:57:00Z", "started_by": adminID,
		"note": "", "share": 1, "per_second": 100, "ended_at": nil, "ended_by": nil, "end_reason": nil, "end_message": nil, "replicas": 1, "seen": n,
		"asked": n, "failed": 0, "dropped": 0, "undecided": 0, "restarts": 0, "candidate_seconds": seconds, "active_seconds": seconds,
		"totals":      obj{"deny_to_allow": 0, "allow_to_deny": 0, "unavailable": 0, "reasons": 0, "limits": 0},
		"differences": []obj{}, "unlisted": 0,
	}
}

// A pipeline must not take for sameness that nothing was asked.
func TestPolicyShadow_NothingAskedIsNoSuccess(t *testing.T) {
	for n, want := range map[int]int{0: cli.ExitFindings, 1: 0} {
		d := newDesk(t)
		d.reply("GET /v1/policy/shadow", shadowAsked(n))
		o := d.run(t, "policy", "shadow", "status", "--fail-on-difference")
		if o.code != want || n == 0 && !strings.Contains(o.err.Error(), "it was not asked about any check") {
			t.Errorf("asked %d: exit %d, %v", n, o.code, o.err)
		}
		if o = d.run(t, "policy", "shadow", "status"); o.code != 0 {
			t.Errorf("asked %d: exit %d, %v", n, o.code, o.err)
		}
	}
}

func TestPolicyShadow_FlagsForStartingWithoutAPolicyAreRefused(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/policy/shadow", shadowAsked(1))
	for _, flag := range []string{"--for=1h", "--per-second=5", "--share=0.5", "--note=x", "--revision="} {
		if o := d.run(t, "policy", "shadow", flag); o.code != cli.ExitUsage {
			t.Errorf("%s: exit %d, %v", flag, o.code, o.err)
		}
	}
	if n := len(d.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	if o := d.run(t, "policy", "shadow"); o.code != 0 {
		t.Errorf("exit %d, %v", o.code, o.err)
	}
}
