package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A policy that asks for "Local" decides the same on every replica, and in a trial, which has
// another environment than the service.
func TestProgram_TheHostsTimeZoneChangesNoPolicy(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), plain(), "opa", "eval", "-f", "raw", `time.clock([0, "Local"])`)
	cmd.Env = append(os.Environ(), asProgram+"=1", "TZ=Asia/Tokyo", "XDG_CACHE_HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "[0,0,0]" {
		t.Errorf("it is %s, %v; want midnight UTC", out, err)
	}
}
