package main

import (
	"os"
	"testing"

	"github.com/supportstation/keystile/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// database returns the URL of an empty schema of the test's own.
func database(t *testing.T) string {
	t.Helper()
	return storetest.Schema(t)
}
