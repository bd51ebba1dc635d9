package faults

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// exportAuditLog exports the chains of the platform and of two organizations.
func (s *site) exportAuditLog(r *replica, organization string) (files []string) {
	s.Helper()
	for _, of := range []string{"", s.organization.String(), organization} {
		file := filepath.Join(s.dir, fmt.Sprintf("audit-%d-%s.jsonl", time.Now().UnixNano(), of))
		args := []string{"audit-log", "export", "--file", file}
		if of != "" {
			args = append(args, "--org", of)
		}
		end := s.command(map[string]string{"KEYSTILE_URL": r.adminURL, "KEYSTILE_ADMIN_TOKEN": s.admin.Reveal()}, args...)
		if end.code != 0 {
			s.Fatalf("export the audit log: exit code %d, %s", end.code, end.stderr)
		}
		files = append(files, file)
	}
	return files
}

// judgeDoctor has the doctor compare the exported audit log with the restored database:
// it must list every change since the copy, and no other.
func (s *site) judgeDoctor(v *victims, exports []string) {
	s.Helper()
	args := []string{"doctor", "-o", "json"}
	for _, file := range exports {
		args = append(args, "--audit-log", file)
	}
	end := s.command(nil, args...)
	if strings.Contains(end.stderr, "unknown command") {
		s.missing("keystile doctor --audit-log: there is no such command yet")
		return
	}
	var said struct {
		Missing []struct {
			Action, Target string
			At             time.Time
		} `json:"missing"`
	}
	if err := json.Unmarshal([]byte(end.stdout), &said); err != nil {
		s.exact(false, "the doctor's output: exit code %d, %v, %.300s", end.code, err, end.stderr)
		return
	}
	wanted := 0
	listed := map[string][]string{}
	timed := true
	for _, m := range said.Missing {
		listed[m.Action] = append(listed[m.Action], m.Target)
		timed = timed && time.Since(m.At) > 0 && time.Since(m.At) < time.Hour
	}
	found := 0
	for action, targets := range v.targets {
		for _, target := range targets {
			wanted++
			if slices.Contains(listed[action], target) {
				found++
			}
		}
	}
	s.exact(end.code == 4 && found == wanted && len(said.Missing) == wanted && timed,
		"keystile doctor --audit-log lists %d of %d changes that the copy lacks, and %d others; exit code %d (4); with action, target and time",
		found, wanted, len(said.Missing)-found, end.code)
	if end.code != 4 {
		s.Logf("the doctor said %s", end.stdout)
	}
}
