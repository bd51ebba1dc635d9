package policy

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/cmd"
)

// TestMain makes the test's own program the process that tries policies, and the stock opa.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "opa" {
		opa := cmd.Command(nil, "OPA")
		opa.SetArgs(os.Args[2:])
		if err := opa.Execute(); err != nil {
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "gate" {
		if err := ServeGate(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func newTestGate(t *testing.T, timeout time.Duration) *Gate {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return NewGate(timeout, self, "gate")
}
