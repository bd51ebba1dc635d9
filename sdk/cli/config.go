package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/admin"
)

// maxSecretFile bounds what is read for one secret, in bytes.
const maxSecretFile = 8 << 10

// Config is what the commands take from their surroundings.
type Config struct {
	// LookupEnv finds KEYSTILE_URL, KEYSTILE_TOKEN and their like. Default:
	// [os.LookupEnv].
	LookupEnv func(name string) (string, bool)
	// Now is the time that tables tell dates from. Default: [time.Now].
	Now func() time.Time
}

func (c Config) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// value returns name's value, or the content of the file that name_FILE says;
// "" when neither is set.
func (c Config) value(name string) (string, error) {
	lookup := c.LookupEnv
	if lookup == nil {
		lookup = os.LookupEnv
	}
	value, set := lookup(name)
	file, fromFile := lookup(name + "_FILE")
	switch {
	case set && fromFile:
		return "", usage(fmt.Errorf("%s and %s_FILE are both set; unset one", name, name))
	case !fromFile:
		return value, nil
	}
	content, err := readSecretFile(file)
	if err != nil {
		return "", usage(fmt.Errorf("%s_FILE: %w", name, err))
	}
	return content, nil
}

func readSecretFile(name string) (string, error) {
	file, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	return readSecret(file)
}

// readSecret takes one line end off: editors and echo put it there.
func readSecret(r io.Reader) (string, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxSecretFile+1))
	if err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	if len(content) > maxSecretFile {
		return "", fmt.Errorf("it is longer than %d bytes; it should hold the secret alone", maxSecretFile)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r"), nil
}

// client connects to url, or to KEYSTILE_URL, as the caller of KEYSTILE_TOKEN.
func (c Config) client(url string) (*keystile.Client, error) {
	url, plaintext, err := c.service(url)
	if err != nil {
		return nil, err
	}
	token, err := c.value("KEYSTILE_TOKEN")
	if err != nil {
		return nil, err
	}
	if token == "" {
		return nil, usage(errors.New("no caller token; set KEYSTILE_TOKEN (ksc_…), or KEYSTILE_TOKEN_FILE"))
	}
	var opts []keystile.Option
	if plaintext {
		opts = append(opts, keystile.WithInsecurePlaintext())
	}
	client, err := keystile.New(url, token, opts...)
	if err != nil {
		return nil, usage(err)
	}
	return client, nil
}

// adminClient connects to url, or to KEYSTILE_URL, as the admin of
// KEYSTILE_ADMIN_TOKEN.
func (c Config) adminClient(url string) (*admin.Client, error) {
	url, plaintext, err := c.service(url)
	if err != nil {
		return nil, err
	}
	token, err := c.value("KEYSTILE_ADMIN_TOKEN")
	if err != nil {
		return nil, err
	}
	if token == "" {
		return nil, usage(errors.New("no admin token; set KEYSTILE_ADMIN_TOKEN (ksa_…), or KEYSTILE_ADMIN_TOKEN_FILE"))
	}
	var opts []admin.Option
	if plaintext {
		opts = append(opts, admin.WithInsecurePlaintext())
	}
	client, err := admin.New(url, token, opts...)
	if err != nil {
		return nil, usage(err)
	}
	return client, nil
}

// service is the flag's URL, or KEYSTILE_URL's, and whether plain http may leave
// the machine.
func (c Config) service(flag string) (string, bool, error) {
	url := flag
	if url == "" {
		var err error
		if url, err = c.value("KEYSTILE_URL"); err != nil {
			return "", false, err
		}
	}
	if url == "" {
		return "", false, usage(errors.New("no service is named; set KEYSTILE_URL or --url, such as http://127.0.0.1:8080"))
	}
	plaintext, err := c.value("KEYSTILE_INSECURE_PLAINTEXT")
	return url, plaintext == "true", err
}

// presentedKey reads the key from file ("-": stdin), or from KEYSTILE_KEY. An
// empty one asks what a client without a key would be told.
func (c Config) presentedKey(file string, stdin io.Reader) (string, error) {
	var key string
	var err error
	switch file {
	case "":
		if key, err = c.value("KEYSTILE_KEY"); err != nil {
			return "", err
		}
		if key == "" {
			return "", usage(errors.New("no key to check; give --key-file FILE, --key-file - for standard input, or set KEYSTILE_KEY"))
		}
		return key, nil
	case "-":
		key, err = readSecret(stdin)
	default:
		key, err = readSecretFile(file)
	}
	if err != nil {
		return "", usage(fmt.Errorf("--key-file: %w", err))
	}
	return key, nil
}
