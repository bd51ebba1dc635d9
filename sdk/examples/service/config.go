// Package service is what both example applications share: configuration, start
// and stop, the database, problem bodies, strict JSON, and pages. It knows no
// tickets and no customers.
package service

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxValueFile bounds a file that holds one value, in bytes.
const maxValueFile = 8 << 10

// Config is what an application needs to run.
type Config struct {
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// DatabaseURL is a Postgres URL of the applications' own database.
	DatabaseURL string
	// KeystileURL and Token reach the service that decides.
	KeystileURL, Token string
	// JSON makes the ready line and the log JSON.
	JSON bool
	// Verbose logs each request.
	Verbose bool
}

// ConfigFrom reads flags from args and the rest from the environment:
//
//   - LISTEN (default defaultListen; the flag -listen wins)
//   - EXAMPLES_DATABASE_URL
//   - KEYSTILE_URL
//   - KEYSTILE_TOKEN_NAME for an application called name, else KEYSTILE_TOKEN
//
// A variable with _FILE behind its name says which file holds the value. No
// error holds a value. [flag.ErrHelp] comes back when help was asked for; usage
// goes to talk.
func ConfigFrom(name, defaultListen string, args []string, lookup func(string) (string, bool), talk io.Writer) (Config, error) {
	env := environment{lookup: lookup}
	c := Config{
		Listen:      env.first("LISTEN"),
		DatabaseURL: env.first("EXAMPLES_DATABASE_URL"),
		KeystileURL: env.first("KEYSTILE_URL"),
		Token:       env.first("KEYSTILE_TOKEN_"+strings.ToUpper(name), "KEYSTILE_TOKEN"),
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	output := "text"
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(talk)
	flags.StringVar(&c.Listen, "listen", c.Listen, "host:port to listen on; also LISTEN")
	flags.StringVar(&output, "o", output, "text or json: the form of the ready line and of the log")
	flags.BoolVar(&c.Verbose, "v", false, "log each request")
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	c.JSON = output == "json"
	switch {
	case env.err != nil:
		return Config{}, env.err
	case flags.NArg() != 0:
		return Config{}, errors.New("there are arguments beside the flags; none is expected")
	case output != "text" && output != "json":
		return Config{}, errors.New("-o must be text or json")
	case c.DatabaseURL == "":
		return Config{}, errors.New("EXAMPLES_DATABASE_URL is not set; it looks like postgres://user:password@host/database")
	case c.KeystileURL == "":
		return Config{}, errors.New("KEYSTILE_URL is not set; it looks like http://127.0.0.1:8080")
	case c.Token == "":
		return Config{}, fmt.Errorf("KEYSTILE_TOKEN_%s is not set; it holds the caller's token (ksc_…)", strings.ToUpper(name))
	}
	return c, nil
}

type environment struct {
	lookup func(string) (string, bool)
	err    error
}

// first returns the first of names that has a value.
func (e *environment) first(names ...string) string {
	for _, name := range names {
		if value, ok := e.lookup(name); ok && value != "" {
			return value
		}
		if file, ok := e.lookup(name + "_FILE"); ok && file != "" {
			return e.read(name, file)
		}
	}
	return ""
}

func (e *environment) read(name, path string) string {
	file, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		e.err = fmt.Errorf("%s_FILE: %w", name, err)
		return ""
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, maxValueFile+1))
	if err == nil && len(content) > maxValueFile {
		err = fmt.Errorf("longer than %d bytes", maxValueFile)
	}
	if err != nil {
		e.err = fmt.Errorf("%s_FILE: %w", name, err)
	}
	return strings.TrimSpace(string(content))
}
