// Command tickets is an example application: a small ticket service whose every
// request is decided by Keystile, and whose rows are kept apart by organization
// and environment. See the README beside it.
package main

import (
	"os"

	"github.com/supportstation/keystile/sdk/examples/service"
)

func main() {
	os.Exit(service.Main(service.App{
		Name: "tickets", DefaultListen: "127.0.0.1:8081", Schema: schema, New: newHandler,
	}))
}
