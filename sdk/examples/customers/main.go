// Command customers is an example application: a small customer directory whose every
// request is decided by Keystile, and whose rows are kept apart by organization
// and environment. See the README beside it.
package main

import (
	"os"

	"github.com/supportstation/keystile/sdk/examples/service"
)

func main() {
	os.Exit(service.Main(service.App{
		Name: "customers", DefaultListen: "127.0.0.1:8082", Schema: schema, New: newHandler,
	}))
}
