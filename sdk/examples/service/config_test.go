package service

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func lookupIn(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

func TestConfigFrom_FlagThenEnvironmentThenFileThenDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("ksc_from_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"EXAMPLES_DATABASE_URL": "postgres://u:p@h/d", "KEYSTILE_URL": "http://127.0.0.1:8080",
		"KEYSTILE_TOKEN": "ksc_general", "KEYSTILE_TOKEN_TICKETS_FILE": file,
	}
	var talk bytes.Buffer
	got, err := ConfigFrom("tickets", "127.0.0.1:8081", nil, lookupIn(env), &talk)
	want := Config{Listen: "127.0.0.1:8081", DatabaseURL: "postgres://u:p@h/d", KeystileURL: "http://127.0.0.1:8080", Token: "ksc_from_file"}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	env["LISTEN"], env["KEYSTILE_TOKEN_TICKETS"] = "127.0.0.1:1", "ksc_own"
	want.Listen, want.Token = "127.0.0.1:1", "ksc_own"
	if got, err = ConfigFrom("tickets", "127.0.0.1:8081", nil, lookupIn(env), &talk); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	want.Listen, want.JSON, want.Token = "127.0.0.1:2", true, "ksc_general"
	if got, err = ConfigFrom("customers", "", []string{"-listen", "127.0.0.1:2", "-o", "json"}, lookupIn(env), &talk); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestConfigFrom_WhatIsMissingIsNamed(t *testing.T) {
	complete := map[string]string{"EXAMPLES_DATABASE_URL": "postgres://h/d", "KEYSTILE_URL": "http://127.0.0.1", "KEYSTILE_TOKEN_TICKETS": "ksc_x"}
	for name := range complete {
		env := map[string]string{}
		for n, v := range complete {
			if n != name {
				env[n] = v
			}
		}
		if _, err := ConfigFrom("tickets", "", nil, lookupIn(env), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		env[name+"_FILE"] = "/no/such/file"
		if _, err := ConfigFrom("tickets", "", nil, lookupIn(env), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), name+"_FILE") {
			t.Errorf("with an unreadable %s_FILE: %v", name, err)
		}
	}
	for _, args := range [][]string{{"-o", "xml"}, {"argument"}, {"-unknown"}} {
		if _, err := ConfigFrom("tickets", "", args, lookupIn(complete), &bytes.Buffer{}); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
